"""Validation: how well a model predicts text that it does not learn from, alone and mixed with a base.

Knows nothing of how the model is trained.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memdec_edge.options import LAMBDAS

from .corpus import Tokens
from .head import predict
from .teacher import gather_blocks, spread_blocks

POSITIONS = 8192  # scored, at most; `memdec-edge eval` can score them all
WEIGHTS = torch.tensor(LAMBDAS[1:-1], dtype=torch.float64)  # of the memory; the ends have no logarithm on one side
ALONE, MIXED = "valid_perplexity", "mixture_perplexity"
FIGURES = (ALONE, MIXED, "mixture_lambda")


@dataclass(frozen=True)
class Validation:
    """Evenly spaced whole blocks of the validation split; none where it is shorter than one."""

    tokens: Tokens
    block: int
    base: Tensor | None = None  # -log p of a base at the positions of `blocks`, float32 in nats; None: no mixture

    @property
    def blocks(self) -> list[int]:
        """The blocks that are scored."""
        return spread_blocks(self.tokens, self.block, POSITIONS)

    @torch.inference_mode()
    def score(self, model: Any, device: torch.device) -> dict[str, float]:
        """Perplexity of `model` alone, and of its mixture with the base at the lambda that is best; {} without text."""
        parts = (gather_blocks(self.tokens, [block], self.block).to(device) for block in self.blocks)
        losses = [predict(model, ids).losses.cpu() for ids in parts]
        if not losses:
            return {}
        found = {ALONE: float(torch.cat(losses).mean().exp())}
        if self.base is not None:
            memory, base = torch.cat(losses).double(), self.base.double()
            mixed = torch.logaddexp(WEIGHTS.log()[:, None] - memory, (1 - WEIGHTS).log()[:, None] - base)
            best = int(mixed.mean(1).argmax())
            found |= {
                MIXED: float((-mixed[best].mean()).exp()),
                "mixture_lambda": float(WEIGHTS[best]),
            }
        return found
