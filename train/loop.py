"""Training: a model learns from blocks of tokens, and from what a retriever says comes next where there is one.

bfloat16 weights where the hardware multiplies them, float32 master weights for AdamW; warm-up, cosine, clipping. Which
blocks a step sees and its random numbers depend on the seed and the step alone, so that a resumed run equals one that
was never stopped, and a control (beta = 0) sees the same text in the same order. What is published are the weights that
did best on validation text, since a small corpus is soon learned by heart. Knows nothing of caches and GGUF.
"""

import math
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from memdec_edge.errors import NumericsError
from memdec_edge.gguf.metadata import CHECKPOINT_METADATA
from memdec_edge.options import TrainOptions
from memdec_edge.progress import progress

from .artifacts import Stage
from .checkpoint import SCRATCH, write_checkpoint
from .corpus import Tokens
from .layers import POSITIONS, choose_layers
from .loss import Objective
from .metrics import CURVES, METRICS, TENSORBOARD, Metrics, draw_curves
from .models import Source, cast_parameters, work_dtype
from .state import BEST, STATE, best_figures, load_best, load_state, remove_kept, save_best, save_state
from .student import make_memory
from .targets import Support, Targets
from .teacher import gather_blocks, n_blocks, spread_blocks
from .validation import ALONE, FIGURES, MIXED, Validation

LAYOUT = (METRICS, CURVES, STATE, BEST, CHECKPOINT_METADATA, f"{SCRATCH}/*", f"{TENSORBOARD}/*")


@dataclass(frozen=True)
class Data:
    """What a training sees."""

    train: Tokens
    targets: Targets | None  # of the training positions; None: cross-entropy alone
    validation: Validation
    block: int  # tokens


def settings(options: TrainOptions, processes: int) -> dict[str, Any]:
    """What decides the weights, beside model and data: what a user would call an option -> its value."""
    return {
        "--from-scratch": options.from_scratch,
        "--layers": options.layers or "all",
        "--hidden": options.hidden or "as it was",
        "--epochs": options.epochs,
        "--steps": options.steps,
        "--beta": options.beta,
        "--lr": options.lr,
        "--batch": options.cache.batch,
        "--accumulate": options.accumulate,
        "--seed": options.cache.seed,
        "a warm-up share of": options.warmup,
        "a weight decay of": options.weight_decay,
        "gradients clipped at": options.clip,
        "a number of processes of": processes,
    }


def accelerator() -> Accelerator:
    """This process among those that `accelerate launch` started, or alone."""
    waits = InitProcessGroupKwargs(timeout=timedelta(days=1))  # for stages that processes may finish hours apart
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[waits])


def fit(options: TrainOptions, source: Source, data: Data, stage: Stage, accelerator: Accelerator) -> None:
    """Train a model made from `source` in the stage's folder, or finish it; a finished one is left as it is.

    Raises OutputError, StageError for a damaged state, NumericsError naming the step whose loss is no number (what was
    saved last is kept), and KeyboardInterrupt (what was done is kept).
    """
    if "finished" in stage.manifest:
        if accelerator.is_main_process:
            remove_kept(stage)  # a kill may have come before the training did
        return
    if accelerator.is_main_process:
        stage.begin()
        if options.layers and not options.hidden and not options.from_scratch and "layers" not in stage.manifest:
            ids = gather_blocks(data.train, spread_blocks(data.train, data.block, POSITIONS), data.block)
            stage.record(layers=choose_layers(source, options.layers, ids, accelerator.device))
    accelerator.wait_for_everyone()
    stage.reload()
    _Run(options, source, data, stage, accelerator).run()
    accelerator.wait_for_everyone()


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, blocks: int) -> list[int]:
    """The order in which an epoch goes through the blocks."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order: list[int] = torch.randperm(blocks, generator=generator).tolist()
    return order


class _Run:
    """One training: model, float32 weights, optimiser, data."""

    def __init__(
        self, options: TrainOptions, source: Source, data: Data, stage: Stage, accelerator: Accelerator
    ) -> None:
        self.options, self.source, self.data, self.stage, self.accelerator = options, source, data, stage, accelerator
        self.blocks = n_blocks(data.train, data.block)
        self.blocks_per_step = options.cache.batch * options.accumulate * accelerator.num_processes
        self.steps = options.steps or max(1, math.ceil(options.epochs * self.blocks / self.blocks_per_step))

        shape = stage.manifest.get("layers", options.layers), options.hidden, options.cache.seed
        self.model = make_memory(source, *shape, fresh=options.from_scratch).to(accelerator.device)
        self.weights = {name: weight.detach() for name, weight in self.model.named_parameters()}
        cast_parameters(self.model, work_dtype(accelerator.device.type))  # self.weights stays float32
        self.objective = Objective(self.model.train())
        self.parameters = dict(self.model.named_parameters())
        decayed = [weight for weight in self.weights.values() if weight.ndim > 1]  # no decay of norms and biases
        others = [weight for weight in self.weights.values() if weight.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, weight_decay=options.weight_decay, fused=True)

    def run(self) -> None:
        """From the last saved state to the published checkpoint."""
        options, main = self.options, self.accelerator.is_main_process
        step = saved = load_state(self.stage, self.weights, self.optimizer)
        self.best = best_figures(self.stage)  # of the weights that did best on validation text; {}: none yet
        self._copy_weights()
        metrics = Metrics(self.stage.folder, step) if main else None
        whole = True  # the weights are those after `step` steps
        try:
            tokens = self.blocks_per_step * self.data.block  # of a step
            with progress("training", self.steps * tokens, done=step * tokens) as advance:
                while step < self.steps:
                    began = time.monotonic()
                    loss, ce, kl, norm = self._gradients(step)
                    if not math.isfinite(loss) or not math.isfinite(norm):
                        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
                        kept = f"the state after step {saved} is kept" if saved else "nothing was saved yet"
                        raise NumericsError(f"{what} at step {step + 1}; {kept}; use `fresh` and a lower `lr`")
                    if main and step > saved and step % options.save_every == 0:
                        self._save(step)  # only now: that its weights give a finite loss is known
                        saved = step
                    whole = False
                    lr = self._update(step)
                    step += 1
                    if metrics:
                        seconds = round(time.monotonic() - began, 3)
                        line = {"loss": loss, "ce": ce, "kl": kl, "grad_norm": norm, "lr": lr, "seconds": seconds}
                        if self._validates(step):
                            line |= self._validate(step)
                    whole = True  # only now: a step whose validation was interrupted is done again
                    if metrics:
                        metrics.add(step, line)
                    advance(tokens)
        except KeyboardInterrupt:
            if main and whole and saved < step < self.steps:  # the last one is not done before it is validated
                self._save(step)
            raise
        finally:
            if metrics:
                metrics.close()
        if main:
            self._finish()

    def _save(self, step: int) -> None:
        save_state(self.stage, step, self.weights, self.optimizer, int(self.best.get("step", 0)))

    def _gradients(self, step: int) -> tuple[float, float, float, float]:
        """Leave the step's mean gradient, clipped, in self.weights; return loss, CE, KL and its norm before."""
        options, accelerator, length = self.options, self.accelerator, self.data.block
        torch.manual_seed((options.cache.seed << 24) + step * accelerator.num_processes + accelerator.process_index)
        total = torch.zeros(3, device=accelerator.device)
        for part in range(options.accumulate):
            first = (step * options.accumulate + part) * accelerator.num_processes + accelerator.process_index
            slots = range(first * options.cache.batch, (first + 1) * options.cache.batch)
            blocks = [
                _order(options.cache.seed, slot // self.blocks, self.blocks)[slot % self.blocks] for slot in slots
            ]
            ids = gather_blocks(self.data.train, blocks, length).to(accelerator.device)
            if self.data.targets:
                support = self.data.targets.rows([block * length for block in blocks], length)
            else:
                support = Support.empty(len(blocks) * length)
            losses = self.objective(ids, support.to(accelerator.device), options.beta)
            (losses[0] / options.accumulate).backward()
            total += torch.stack([loss.detach() for loss in losses]) / options.accumulate
            for name, parameter in self.parameters.items():
                if parameter.grad is None:
                    continue
                weight, grad = self.weights[name], parameter.grad.float()
                weight.grad = grad if weight.grad is None else weight.grad.add_(grad)
                parameter.grad = None
        for weight in self.weights.values():  # once a step and in float32: no rounding depends on how work is divided
            if weight.grad is not None:
                weight.grad = accelerator.reduce(weight.grad, "mean")
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), options.clip).item()
        loss, ce, kl = accelerator.reduce(total, "mean").tolist()
        return loss, ce, kl, norm

    def _update(self, step: int) -> float:
        """Step AdamW and bring the model to the new weights; return the learning rate."""
        lr = learning_rate(self.options, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._copy_weights()
        return lr

    @torch.no_grad()
    def _copy_weights(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self.weights[name])

    def _finish(self) -> None:
        """Publish the weights that did best on validation text, the last ones where there is none."""
        best = self.best
        if best:
            load_best(self.stage, self.weights)
        elif self.data.validation.blocks:
            raise NumericsError("the memory predicts NaN; use `fresh` and a lower `lr`")
        for name, parameter in self.parameters.items():
            parameter.data = self.weights[name]
        write_checkpoint(self.stage, self.model.eval(), self.source.tokenizer)
        draw_curves(self.stage.folder)
        seen = self.steps * self.blocks_per_step
        finished = {
            "steps": self.steps,
            "tokens": seen * self.data.block,
            "epochs": seen / self.blocks,
            "best_step": int(best.get("step", self.steps)),
            **{name: best.get(name) for name in FIGURES},
        }
        self.stage.record(finished=finished)
        remove_kept(self.stage)

    def _validates(self, step: int) -> bool:
        """Every valid_every steps, after each epoch, and at the end."""
        every, ends_epoch = self.options.valid_every, step * self.blocks_per_step % self.blocks < self.blocks_per_step
        return step == self.steps or (every > 0 and (step % every == 0 or ends_epoch))

    def _validate(self, step: int) -> dict[str, float]:
        """Score the memory, and keep its weights if no earlier ones did better (mixed, where there is a base)."""
        found = self.data.validation.score(self.model.eval(), self.accelerator.device)
        self.model.train()
        judged = found.get(MIXED, found.get(ALONE, math.nan))
        if judged < self.best.get(MIXED, self.best.get(ALONE, math.inf)):
            self.best = {"step": step, **found}
            save_best(self.stage, self.weights, self.best)
        return found


def learning_rate(options: TrainOptions, step: int, steps: int) -> float:
    """Linear warm-up to options.lr, then a cosine to 0 at the last step's end; step from 0."""
    warm = math.ceil(options.warmup * steps)
    if step < warm:
        return options.lr * (step + 1) / warm
    return options.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
