"""The loss of a memory: head and loss in one pass over chunks of tokens.

    L = beta * KL(p_kNN || p_mem) + (1 - beta) * CE                                                (2508.09874, eq. 5)

p_kNN is the target that train/targets.py made. KL needs only the support of p_kNN, so one logsumexp serves both terms.
Labels are not smoothed. The two terms have one mixed target, t = beta * p_kNN + (1 - beta) * [label]. Its sum w is 1,
or 1 - beta where a position has no p_kNN. The gradient with respect to the logits is G = w * p_mem - t. A position has
a weight in the mean, which multiplies both: at weight 0 it teaches nothing.

G overwrites the logits of its chunk. The gradients of hidden state and head, G W and G^T H, are made right there.
So no matrix of tokens x vocabulary exists, neither forward nor backward.

Knows nothing of training, and of targets only their layout.
"""

from typing import Any

import torch
from torch import Tensor

from .graph import Body
from .head import logit_chunks, softmax_tiles, wide_type
from .targets import Support
from .transfer import send


class Objective(torch.nn.Module):
    """A causal LM of transformers as the function that training minimises; its parameters are those of the model."""

    def __init__(self, model: Any, body: Body | None = None) -> None:
        """Wrap `model`; check_head() tells beforehand whether the loss will be that of its logits.

        body  last_hidden() of the model, or what is faster and gives the same
        """
        super().__init__()
        self.model, self.body = model, body or Body(model)

    def forward(
        self, ids: Tensor, support: Support, beta: float, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss in nats, then the means of CE and KL(p_kNN || p_mem), which carry no gradient.

        KL is 0 at positions without p_kNN.

        ids  int64 [batch, length + 1]; support  of the batch * length positions, its pairs on the same device; beta in
        [0, 1]; weights  float [batch * length], of the positions in the sum that is divided by their number; None: 1
        """
        hidden, head = self.body(ids), self.model.get_output_embeddings()
        labels = ids[:, 1:].flatten()
        weights = torch.ones(len(labels), device=labels.device) if weights is None else weights
        losses: tuple[Tensor, Tensor, Tensor] = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, labels, support.offsets, support.ids, support.probs, beta, weights
        )
        return losses


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # [n, width]
        weight: Tensor,  # [n_vocab, width]
        bias: Tensor | None,  # [n_vocab]
        labels: Tensor,
        offsets: Tensor,  # on the CPU
        ids: Tensor,
        probs: Tensor,
        beta: float,
        weights: Tensor,  # [n]
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, device, wide = len(hidden), hidden.device, wide_type(hidden)
        probs, weights = probs.to(wide), weights.to(wide)
        lengths = send(offsets.diff(), device)
        rows = torch.repeat_interleave(torch.arange(n, device=device), lengths, output_size=len(ids))
        share = (beta * torch.zeros(n, dtype=wide, device=device).index_add_(0, rows, probs) + (1 - beta)) * weights
        lse, own, on_support = torch.empty_like(share), torch.empty_like(share), torch.empty_like(probs)
        # Summed in the head's own type: in bfloat16 one rounding a chunk (error 0.28 % over 8 chunks, 0.17 % in one),
        # while a float32 sum would be twice as large as the head.
        grads = [torch.empty_like(hidden), torch.zeros_like(weight)]
        if bias is not None:
            grads.append(torch.zeros_like(bias))
        bounds = offsets.tolist()
        for chunk, logits in logit_chunks(hidden, weight, bias):
            for tile, gradient, tile_lse in softmax_tiles(logits):
                low, high = chunk.start + tile.start, chunk.start + tile.stop
                pairs = slice(bounds[low], bounds[high])
                at_support = rows[pairs] - low, ids[pairs]
                at_label = torch.arange(high - low, device=device), labels[low:high]
                lse[low:high], own[low:high] = tile_lse, logits[tile][at_label]
                on_support[pairs] = logits[tile][at_support]
                gradient *= share[low:high, None]
                gradient[at_support] -= beta * probs[pairs] * weights[rows[pairs]]
                gradient[at_label] -= (1 - beta) * weights[low:high]
                logits[tile] = gradient
            torch.mm(logits, weight, out=grads[0][chunk])
            grads[1].addmm_(logits.t(), hidden[chunk])
            if bias is not None:
                grads[2] += logits.sum(0)
        ctx.save_for_backward(*grads)
        kl = torch.zeros_like(lse).index_add_(0, rows, torch.xlogy(probs, probs) - probs * (on_support - lse[rows]))
        ce = lse - own
        ctx.mark_non_differentiable(ce_mean := (ce * weights).mean(), kl_mean := (kl * weights).mean())
        return ((beta * kl + (1 - beta) * ce) * weights).mean(), ce_mean, kl_mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        for gradient in saved:  # in place: a second backward would be refused by autograd
            gradient *= grads[0] / len(saved[0])
        return (*saved, *[None] * (9 - len(saved)))
