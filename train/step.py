"""One optimiser step: a model in its working type, its float32 weights, and their AdamW.

bfloat16 weights where the hardware multiplies them; master weights, moments and gradients in float32. The blocks that a
step sees (feed.py) and its random numbers depend on seed and step alone. Nothing here waits for the device. Knows
nothing of validation, files and the length of a run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from memdec_edge.options import TrainOptions

from .feed import Data, Feed
from .graph import graphed_body
from .head import predict
from .loss import Objective
from .models import cast_parameters, work_dtype
from .teacher import n_blocks
from .transfer import Coming


@dataclass(frozen=True)
class Losses:
    """What a step's forward and backward found, as the mean over its positions that count, in nats."""

    loss: float
    ce: float
    kl: float
    grad_norm: float  # before clipping

    @property
    def is_finite(self) -> bool:
        """Whether the loss and the gradient's norm are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Found:
    """The losses of a step that the device may still be at work on."""

    def __init__(self, numbers: Tensor) -> None:
        """numbers: float32 [4], as Losses has them."""
        self._numbers = Coming([numbers])

    def known(self) -> Losses:
        """The losses, once the device has them."""
        return Losses(*self._numbers.wait()[0].tolist())


class Learner:
    """A model that takes steps."""

    def __init__(self, options: TrainOptions, model: Any, data: Data, accelerator: Accelerator) -> None:
        self.options, self.data, self.accelerator = options, data, accelerator
        self._feed = Feed(data, options.cache, accelerator, options.accumulate)
        self.blocks = n_blocks(data.train, data.block)
        self.blocks_per_step = options.cache.batch * options.accumulate * accelerator.num_processes
        self.model = model.to(accelerator.device).train()
        self.weights = {name: weight.detach() for name, weight in model.named_parameters()}
        cast_parameters(model, work_dtype(accelerator.device.type))  # self.weights stays float32
        self.parameters = dict(model.named_parameters())
        for name, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(partial(_collect, self.weights[name]))
        self._objective = Objective(model, graphed_body(model, options.cache.batch, data.block))
        self.optimizer = torch.optim.AdamW(self._groups(), weight_decay=options.weight_decay, fused=True)

    def gradients(self, step: int) -> Found:
        """Leave the step's mean gradient, clipped, beside the float32 weights; step from 0."""
        options, accelerator = self.options, self.accelerator
        torch.manual_seed((options.cache.seed << 24) + step * accelerator.num_processes + accelerator.process_index)
        total = torch.zeros(3, device=accelerator.device)
        for part in range(options.accumulate):
            batch = self._feed.batch(step * options.accumulate + part)
            losses = self._objective(batch.ids, batch.support, options.beta, batch.weights)
            (losses[0] / options.accumulate).backward()
            total += torch.stack([loss.detach() for loss in losses]) / options.accumulate
        if accelerator.num_processes > 1:  # reduce() of a single one would copy each gradient
            for weight in self.weights.values():  # once a step, in float32: no rounding depends on how work is divided
                if weight.grad is not None:
                    weight.grad = accelerator.reduce(weight.grad, "mean")
            total = accelerator.reduce(total, "mean")
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), options.clip)
        return Found(torch.cat([total, norm[None]]))

    def update(self, rate: float, *, body: bool = True) -> None:
        """Step AdamW by the gradients at a learning rate of `rate`, and bring the model to the new weights.

        body  False: embedding and head alone change, and the moments of the others
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate if body or not group["body"] else 0.0
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.show_weights()

    @torch.no_grad()
    def show_weights(self) -> None:
        """Bring the model to the float32 weights."""
        torch._foreach_copy_(list(self.parameters.values()), list(self.weights.values()))

    @torch.no_grad()
    def restart(self, weights: Mapping[str, Tensor]) -> None:
        """Go back to `weights`, as if no step had been taken."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])
            weight.grad = None
        self.optimizer.state.clear()
        self.show_weights()

    def is_sound(self, step: int) -> bool:
        """Whether the text of the next step, `step` from 0, has a loss that is a number."""
        batch = self._feed.batch(step * self.options.accumulate)
        return bool(predict(self.model, batch.ids).losses.isfinite().all())

    def close(self) -> None:
        """End the thread that makes batches, and free the graph."""
        self._feed.close()
        self._objective.body.release()

    def _groups(self) -> list[dict[str, Any]]:
        """The weights for AdamW: embedding and head, then the body; matrices decay, norms and biases do not."""
        ends = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        vocabulary = {id(parameter) for end in ends for parameter in end.parameters()}
        groups: list[dict[str, Any]] = []
        for body in (False, True):
            mine = [w for name, w in self.weights.items() if body == (id(self.parameters[name]) not in vocabulary)]
            groups += [
                {"params": [weight for weight in mine if weight.ndim > 1], "body": body},
                {"params": [weight for weight in mine if weight.ndim <= 1], "body": body, "weight_decay": 0.0},
            ]
        return [group for group in groups if group["params"]]


def _collect(weight: Tensor, parameter: Tensor) -> None:
    """Add a parameter's gradient to that of its float32 weight as soon as backward has it, and free it."""
    assert parameter.grad is not None
    grad, parameter.grad = parameter.grad.float(), None
    weight.grad = grad if weight.grad is None else weight.grad.add_(grad)
