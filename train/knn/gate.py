"""The temperature of a retriever and its gate: how sharply it weighs neighbours, and how much it counts at a position.

    p(y) = gate * p_kNN(y) + (1 - gate) * p_teacher(y),    gate = 1 / (1 + exp(slope * d - intercept))

d is the squared L2 distance to the nearest key. A context that the text holds already has close neighbours, and they
know what comes next; far neighbours know little (after 2210.15859). Both are fitted on validation text, where the
teacher's own prediction is the rival. Knows nothing of models, and of neighbours only how far they are and whether
their next token is the true one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..targets import kernel

Array = npt.NDArray[Any]
TAUS = 2.0 ** (np.arange(-20, 9) / 2)  # times the median distance of all neighbours
INTERCEPTS = np.arange(-5.0, 4.5, 0.5)
PART = 1024  # positions at a time
SLOPES = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0])  # over the median distance of the nearest


@dataclass(frozen=True)
class Gate:
    """The weight of p_kNN in its mixture with the teacher, as a function of the distance to the nearest key."""

    intercept: float
    slope: float  # of a unit of squared L2; 0: the same weight at every distance

    def at(self, nearest: Array) -> Array:
        """Weights float64 in [0, 1) for squared distances to the nearest key; 0 where there is no key (inf)."""
        found = np.isfinite(nearest)
        with np.errstate(over="ignore"):  # exp overflows for a key that is very far away: its weight is 0
            gate = 1 / (1 + np.exp(self.slope * np.where(found, nearest, 0).astype(np.float64) - self.intercept))
        return np.where(found, gate, 0.0)


@dataclass(frozen=True)
class Fit:
    """A temperature and a gate, and what they are worth on the validation positions."""

    tau: float
    gate: Gate
    weight: float  # mean of the gate
    knn: float  # perplexity of retriever and teacher, mixed by the gate
    teacher: float  # perplexity of the teacher alone


def fit_gate(distances: Array, hits: Array, teacher: Array, tau: float | None) -> Fit:
    """Search a grid of temperatures and gates for the least perplexity; where `tau` is given, of gates alone.

    distances  float32 [n, k], squared L2, nearest first; inf where an index found fewer than k
    hits       bool [n, k], whether the neighbour's next token is the true one
    teacher    float32 [n], log-prob of the true next token
    """
    scale = float(np.median(distances[np.isfinite(distances)])) or 1.0
    nearest, own = distances[:, 0], np.exp(teacher.astype(np.float64))  # exp underflows in float32 below -103 nats
    steepness = float(np.median(nearest[np.isfinite(nearest)])) or 1.0
    gates = [Gate(float(a), float(b) / steepness) for b in SLOPES for a in INTERCEPTS]
    weights = [gate.at(nearest) for gate in gates]
    found: list[tuple[float, float, int]] = []
    for candidate in [tau] if tau is not None else (scale * TAUS).tolist():
        knn = _mass_of_hits(distances, hits, candidate)
        losses = [-np.log(weight * (knn - own) + own).mean() for weight in weights]
        best = int(np.argmin(losses))
        found.append((float(losses[best]), candidate, best))
    loss, chosen, number = min(found)
    return Fit(
        chosen, gates[number], float(weights[number].mean()), float(np.exp(loss)), float(np.exp(-teacher.mean()))
    )


def _mass_of_hits(distances: Array, hits: Array, tau: float) -> Array:
    """What p_kNN gives to the true next token, float64 [n]; in parts, since the weights take 8 bytes a neighbour."""
    parts = (slice(low, low + PART) for low in range(0, len(distances), PART))
    return np.concatenate([(kernel(distances[rows], tau) * hits[rows]).sum(1) for rows in parts])
