"""Validation: how well a model predicts text that it does not learn from, alone and mixed with a base.

Knows nothing of how the model is trained.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memdec_edge.mixture.weights import best_lambda
from memdec_edge.options import LAMBDAS, TrainOptions

from .corpus import Tokens
from .head import predict
from .teacher import gather_blocks, spread_blocks

ALONE, MIXED, LAMBDA = "valid_perplexity", "mixture_perplexity", "mixture_lambda"
FIGURES = (ALONE, MIXED, LAMBDA)
PASS = 2048  # positions that are scored together
Figures = dict[str, float]  # by name of FIGURES; no mixture without a base, nothing at all without text


@dataclass(frozen=True)
class Validation:
    """Evenly spaced whole blocks of a text; none where it is shorter than one."""

    tokens: Tokens
    block: int
    base: Tensor | None = None  # -log p of a base at the positions of `blocks`, float32 in nats; None: no mixture
    positions: int = TrainOptions.valid_positions  # scored, at most

    @property
    def blocks(self) -> list[int]:
        """The blocks that are scored."""
        return spread_blocks(self.tokens, self.block, self.positions)

    @torch.inference_mode()
    def score(self, model: Any, device: torch.device) -> Figures:
        """Perplexity of `model` alone, and of its mixture with the base at the best of LAMBDAS, 0 and 1 among them."""
        blocks, together = self.blocks, max(1, PASS // self.block)
        parts = (blocks[low : low + together] for low in range(0, len(blocks), together))
        ids = (gather_blocks(self.tokens, part, self.block).to(device) for part in parts)
        losses = [predict(model, some).losses.cpu() for some in ids]
        if not losses:
            return {}
        memory = torch.cat(losses).double()
        if self.base is None:
            return {ALONE: float(memory.mean().exp())}
        sweep = {weight: _mixed(memory, self.base.double(), weight) for weight in LAMBDAS}
        best = best_lambda(sweep)
        return {ALONE: float(memory.mean().exp()), MIXED: sweep[best], LAMBDA: best}


def merit(figures: Mapping[str, float]) -> tuple[float, float]:
    """What decides between weights, less is better: perplexity of the mixture, then that of the memory alone.

    NaN counts as infinite, and so does what is not known.
    """
    mixed, alone = (figures.get(name, math.inf) for name in (MIXED, ALONE))
    return (math.inf if math.isnan(mixed) else mixed), (math.inf if math.isnan(alone) else alone)


def _mixed(memory: Tensor, base: Tensor, weight: float) -> float:
    """Perplexity of a mixture, from both models' -log p of the same tokens, float64 in nats."""
    logs = [math.log(share) - losses for share, losses in ((weight, memory), (1 - weight, base)) if share > 0]
    return float((-torch.stack(logs).logsumexp(0).mean()).exp())
