"""The loss of a memory, from one log-softmax, on the support of p_kNN only. Knows nothing of models.

    L = beta * KL(p_kNN || p_mem) + (1 - beta) * CE                                                (2508.09874, eq. 5)

Its gradient with respect to the logits is w * p_mem - t, with the mixed target t = beta * p_kNN + (1 - beta) * [label]
and w its sum: 1, or 1 - beta where a position has no p_kNN. Of size tokens x vocabulary there are only the logits and
this gradient, which is made in the same pass; float32 arithmetic goes over a few rows at a time.
"""

from typing import Any

import torch
from torch import Tensor

from .targets import Support

ROWS = 16  # 16 x 151,936 float32 are 9.7 MB: they stay in a cache, twice as fast as when they do not


class _HybridLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, offsets: Tensor, ids: Tensor, probs: Tensor, beta: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, device = len(logits), logits.device
        wide = torch.promote_types(logits.dtype, torch.float32)
        probs = probs.to(wide)
        rows = torch.repeat_interleave(torch.arange(n, device=device), offsets.diff())
        weight = beta * torch.zeros(n, dtype=wide, device=device).index_add_(0, rows, probs) + (1 - beta)
        ce, on_support, gradient = weight.new_empty(n), torch.empty_like(probs), torch.empty_like(logits)
        bounds = offsets.tolist()
        for low in range(0, n, ROWS):
            high = min(low + ROWS, n)
            pairs = slice(bounds[low], bounds[high])
            support = rows[pairs] - low, ids[pairs]
            own = torch.arange(high - low, device=device), labels[low:high]
            part = logits[low:high].log_softmax(1, dtype=wide)
            ce[low:high] = -part[own]
            on_support[pairs] = part[support]
            part.exp_().mul_(weight[low:high, None])
            part[support] -= beta * probs[pairs]
            part[own] -= 1 - beta
            gradient[low:high] = part.div_(n)
        kl = torch.zeros_like(ce).index_add_(0, rows, probs * (probs.log() - on_support))
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(ce_mean := ce.mean(), kl_mean := kl.mean())
        return (beta * kl + (1 - beta) * ce).mean(), ce_mean, kl_mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None, None, None


def hybrid_loss(logits: Tensor, labels: Tensor, support: Support, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss in nats, and for the record the means of CE and KL(p_kNN || p_mem) (0 at positions without p_kNN).

    logits  [n, n_vocab], any float type; labels  int64 [n]; support  of the same n positions; beta in [0, 1]
    """
    losses: tuple[Tensor, Tensor, Tensor] = _HybridLoss.apply(  # type: ignore[no-untyped-call]
        logits, labels, support.offsets, support.ids, support.probs, beta
    )
    return losses
