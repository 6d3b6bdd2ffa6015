"""What a retriever is worth: how sharply it weighs its neighbours, and where it is to be believed. Fitted on validation
text, where the teacher's own prediction is the rival.

    p(y) = trust * p_kNN(y) + (1 - trust) * p_teacher(y),    trust = 1 / (1 + exp(slope * d - intercept))

d is the squared L2 distance to the nearest key: a context that was seen before has close neighbours, and they know what
comes next; far ones know little (after 2210.15859). Knows nothing of models, and of neighbours only distances and
whether they are right.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..targets import kernel

Array = npt.NDArray[Any]
TAUS = 2.0 ** (np.arange(-20, 9) / 2)  # times the median distance of all neighbours
INTERCEPTS = np.arange(-5.0, 4.5, 0.5)
SLOPES = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0])  # over the median distance of the nearest


@dataclass(frozen=True)
class Trust:
    """How far a retriever is to be believed at a position."""

    intercept: float
    slope: float  # of a unit of squared L2; 0: everywhere alike

    def at(self, nearest: Array) -> Array:
        """Trust in [0, 1), float64, for squared distances to the nearest key; 0 where there is none (inf)."""
        found = np.isfinite(nearest)
        with np.errstate(over="ignore"):  # a key so far away is not believed at all
            trust = 1 / (1 + np.exp(self.slope * np.where(found, nearest, 0).astype(np.float64) - self.intercept))
        return np.where(found, trust, 0.0)


@dataclass(frozen=True)
class Fit:
    """A tau and a trust, and perplexities on the validation positions."""

    tau: float
    trust: Trust
    weight: float  # mean trust
    knn: float  # of retriever and teacher, mixed by trust
    teacher: float


def fit_trust(distances: Array, hits: Array, teacher: Array, tau: float | None) -> Fit:
    """The tau and the trust with the least perplexity; of all trusts alone where `tau` is given.

    distances  float32 [n, k], squared L2, nearest first; hits  bool [n, k], the neighbour's next token is the true one
    teacher    float32 [n], log-prob of the true next token
    """
    scale = float(np.median(distances[np.isfinite(distances)])) or 1.0  # an index may not find all k
    nearest, own = distances[:, 0], np.exp(teacher.astype(np.float64))  # float32 ends at 103 nats
    steepness = float(np.median(nearest[np.isfinite(nearest)])) or 1.0
    trusts = [Trust(float(a), float(b) / steepness) for b in SLOPES for a in INTERCEPTS]
    weights = [trust.at(nearest) for trust in trusts]
    found: list[tuple[float, float, int]] = []
    for candidate in [tau] if tau is not None else (scale * TAUS).tolist():
        knn = (kernel(distances, candidate) * hits).sum(1)
        losses = [-np.log(weight * (knn - own) + own).mean() for weight in weights]
        best = int(np.argmin(losses))
        found.append((float(losses[best]), candidate, best))
    loss, chosen, number = min(found)
    weight = float(weights[number].mean())
    return Fit(chosen, trusts[number], weight, float(np.exp(loss)), float(np.exp(-teacher.mean())))
