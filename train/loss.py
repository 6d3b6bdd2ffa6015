"""The loss of a memory, without its logits: head and loss in one pass over chunks of tokens.

    L = beta * KL(p_kNN || p_mem) + (1 - beta) * CE                                                (2508.09874, eq. 5)

p_kNN is the target, whatever train/targets.py made of it. Both terms come from one log-normaliser, KL on the support
of p_kNN only; labels are not smoothed. With the mixed target t = beta * p_kNN + (1 - beta) * [label], and w its sum (1,
or 1 - beta where a position has no p_kNN), the gradient with respect to the logits is G = w * p_mem - t. It takes the
place of the logits of its chunk, and the gradients of hidden state and head, G W and G^T H, are made right there, so
that tokens x vocabulary exists neither forward nor backward.

Knows how transformers divides a causal LM into body and head; nothing of training, and of targets only their layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from memdec_edge.errors import ModelFileError

from .targets import Support

CHUNK = 128 << 20  # bytes of logits; with a quarter of it adding up the head's gradient costs 5 %, more gains 1 %
ROWS = 16  # of a chunk in float32 on a CPU: 16 x 151,936 are 9.7 MB and stay in a cache
LARGE = 100.0  # logits at which a soft cap (30 or 50 in Gemma) shows


class Objective(torch.nn.Module):
    """A causal LM of transformers as the function that training minimises; its parameters are those of the model."""

    def __init__(self, model: Any) -> None:
        """check_head(model) says whether this gives the loss of its logits."""
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, support: Support, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss in nats, and for the record the means of CE and KL(p_kNN || p_mem) (0 at positions without p_kNN).

        ids  int64 [batch, length + 1]; support  of the batch * length positions, on the same device; beta in [0, 1]
        """
        hidden, head = _last_hidden(self.model, ids), self.model.get_output_embeddings()
        labels = ids[:, 1:].flatten()
        losses: tuple[Tensor, Tensor, Tensor] = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, labels, support.offsets, support.ids, support.probs, beta
        )
        return losses


@dataclass(frozen=True)
class Predicted:
    """What a model says of the next token at n positions."""

    losses: Tensor  # float32 [n], -log p(next token) in nats
    ids: Tensor  # int64 [n, most], the likeliest next tokens, likeliest first
    probs: Tensor  # float32 [n, most]

    @staticmethod
    def nothing() -> "Predicted":
        """Of no position."""
        return Predicted(torch.empty(0), torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0))

    @staticmethod
    def of(logits: Tensor, labels: Tensor, most: int) -> "Predicted":
        """logits  [n, n_vocab]; labels  int64 [n], the next tokens"""
        lse = torch.cat([tile for _, _, tile in _softmax(logits)])
        own = logits.gather(1, labels[:, None])[:, 0]
        likeliest, ids = logits.topk(most) if most else (logits[:, :0], labels[:, None][:, :0])
        return Predicted((lse - own).float(), ids, (likeliest - lse[:, None]).exp().float())

    @staticmethod
    def join(parts: list["Predicted"]) -> "Predicted":
        """Of all positions, those of `parts` one after the other."""
        some = [part for part in parts if len(part.losses)] or parts[:1]
        return Predicted(*(torch.cat([getattr(part, each.name) for part in some]) for each in fields(Predicted)))


@torch.no_grad()
def predict(model: Any, ids: Tensor, most: int = 0) -> Predicted:
    """What `model` says at each position, a chunk of logits at a time; ids  int64 [batch, length + 1]."""
    hidden, head, labels = _last_hidden(model, ids), model.get_output_embeddings(), ids[:, 1:].flatten()
    chunks = _chunks(hidden, head.weight, head.bias)
    return Predicted.join([Predicted.of(logits, labels[chunk], most) for chunk, logits in chunks])


@torch.no_grad()
def check_head(model: Any) -> None:
    """Raise ModelFileError unless the model's logits are its head, a matrix with or without a bias, on its last hidden
    state. What else some models do (a cap, a scale) is looked for at large logits, where all of it shows."""
    reason = f"the logits of {type(model).__name__} are more than a matrix on its last hidden state; use another model"
    head, body = model.get_output_embeddings(), model.base_model
    if not isinstance(head, torch.nn.Linear) or body is model:
        raise ModelFileError(model.config.name_or_path, reason)
    expected: list[Tensor] = []

    def enlarge(module: torch.nn.Module, args: Any, output: Any) -> None:
        logits = head(output.last_hidden_state)
        output.last_hidden_state = output.last_hidden_state * (LARGE / logits.abs().max())
        expected.append(head(output.last_hidden_state))

    training, hook = model.training, body.register_forward_hook(enlarge)
    try:
        ids = torch.arange(8, device=head.weight.device)[None] % len(head.weight)
        found = model.eval()(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
        model.train(training)
    if not torch.allclose(found, expected[0], rtol=0, atol=LARGE * torch.finfo(head.weight.dtype).eps ** 0.5):
        raise ModelFileError(model.config.name_or_path, reason)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # [n, width]
        weight: Tensor,  # [n_vocab, width]
        bias: Tensor | None,  # [n_vocab]
        labels: Tensor,
        offsets: Tensor,
        ids: Tensor,
        probs: Tensor,
        beta: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, device, wide = len(hidden), hidden.device, _wide(hidden)
        probs = probs.to(wide)
        rows = torch.repeat_interleave(torch.arange(n, device=device), offsets.diff())
        share = beta * torch.zeros(n, dtype=wide, device=device).index_add_(0, rows, probs) + (1 - beta)
        lse, own, on_support = torch.empty_like(share), torch.empty_like(share), torch.empty_like(probs)
        # Summed in the head's own type: in bfloat16 one rounding a chunk (error 0.28 % over 8 chunks, 0.17 % in one),
        # while a float32 sum would be twice as large as the head.
        grads = [torch.empty_like(hidden), torch.zeros_like(weight)]
        if bias is not None:
            grads.append(torch.zeros_like(bias))
        bounds = offsets.tolist()
        for chunk, logits in _chunks(hidden, weight, bias):
            for tile, gradient, tile_lse in _softmax(logits):
                low, high = chunk.start + tile.start, chunk.start + tile.stop
                pairs = slice(bounds[low], bounds[high])
                at_support = rows[pairs] - low, ids[pairs]
                at_label = torch.arange(high - low, device=device), labels[low:high]
                lse[low:high], own[low:high] = tile_lse, logits[tile][at_label]
                on_support[pairs] = logits[tile][at_support]
                gradient *= share[low:high, None]
                gradient[at_support] -= beta * probs[pairs]
                gradient[at_label] -= 1 - beta
                logits[tile] = gradient
            torch.mm(logits, weight, out=grads[0][chunk])
            grads[1].addmm_(logits.t(), hidden[chunk])
            if bias is not None:
                grads[2] += logits.sum(0)
        ctx.save_for_backward(*grads)
        kl = torch.zeros_like(lse).index_add_(0, rows, torch.xlogy(probs, probs) - probs * (on_support - lse[rows]))
        ce = lse - own
        ctx.mark_non_differentiable(ce_mean := ce.mean(), kl_mean := kl.mean())
        return (beta * kl + (1 - beta) * ce).mean(), ce_mean, kl_mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        for gradient in saved:  # in place: a second backward would be refused by autograd
            gradient *= grads[0] / len(saved[0])
        return (*saved, *[None] * (8 - len(saved)))


def _last_hidden(model: Any, ids: Tensor) -> Tensor:
    """What the head is given at each position but the last, [batch * length, width]."""
    hidden: Tensor = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Positions, and their logits in a buffer that is used again for the next ones."""
    n, n_vocab = len(hidden), len(weight)
    count = -(-n * n_vocab * weight.element_size() // CHUNK)
    size = -(-n // count)
    buffer = hidden.new_empty(size, n_vocab)
    for low in range(0, n, size):
        chunk = slice(low, min(low + size, n))
        logits = torch.mm(hidden[chunk], weight.t(), out=buffer[: chunk.stop - low])
        if bias is not None:
            logits += bias
        yield chunk, logits


def _softmax(logits: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of a chunk, their probabilities and log-normalisers, in float32 or wider."""
    n, wide = len(logits), _wide(logits)
    step = ROWS if logits.device.type == "cpu" else n
    for low in range(0, n, step):
        tile = slice(low, min(low + step, n))
        probs = logits[tile].softmax(1, dtype=wide)
        yield tile, probs, logits[tile].amax(1).to(wide) - probs.amax(1).log()  # the largest is 1 / sum(exp(x - max))
