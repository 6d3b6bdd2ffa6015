"""What a memory imitates: a sparse distribution of the next token at each position, on disk and back.

    p_kNN(y) = sum of exp(-d_j^2 / tau) over neighbours j whose next token is y, normalised    (1911.00172, section 2)

knn     p_kNN itself (2508.09874)
knn-lm  gate * p_kNN + (1 - gate) * p_teacher; train/knn/gate.py says how much the retriever counts at a position:
        imitating p_kNN where no neighbour is close teaches noise (benchmarks/LOG.md)

A target shard is CSR: offsets uint32 [n + 1], ids uint16 or uint32 [pairs] ascending in a row, probs float16 [pairs].
When a row is read, its probabilities are made to sum to 1 again, in float32. Knows nothing of models.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memdec_edge.errors import NumericsError

from .artifacts import Stage
from .transfer import send

ROW_BYTES = 192  # of ids and probs of a position, 48 or 32 tokens: of k = 1024 neighbours 0.84 and more of p_kNN
ROW_PAIRS = ROW_BYTES // 4  # of an id and a probability, at most
MAX_PAIRS = 2**32 - 1  # of a shard, whose offsets are uint32
Array = npt.NDArray[Any]


def kernel(distances: Array, tau: float) -> Array:
    """Shares of the neighbours in p_kNN, float64 [n, k]. A row sums to 1, or to 0 where no distance is finite.

    distances  float32 [n, k], squared L2; tau > 0
    """
    nearest = distances.min(1, keepdims=True)
    weights = np.exp((np.where(np.isfinite(nearest), nearest, 0) - distances).astype(np.float64) / tau)
    return _normalised(weights)


def learned_only(distances: Array, indices: Array, counted: Array | None) -> tuple[Array, Array]:
    """Neighbours that vote: those whose next token is not learned come last, infinitely far away.

    distances, indices  [n, k], nearest first; counted  bool, for each token of the stream; None: all are learned
    """
    if counted is None:
        return distances, indices
    distances = np.where(counted[indices + 1], distances, np.float32(np.inf))
    order = distances.argsort(axis=1, kind="stable")
    return np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1)


def blend(weights: Array, values: Array, ids: Array, probs: Array, gate: Array) -> tuple[Array, Array]:
    """The mixture of retriever and teacher: weights float64 [n, k + k'] and tokens uint32 [n, k + k'] for aggregate().

    weights, values  of the k neighbours, as kernel() and aggregate() have them
    ids, probs       uint32 and float16 [n, k'], the teacher's likeliest tokens, which stand for all that it predicts
    gate             float64 [n], the retriever's share
    """
    own = _normalised(probs.astype(np.float64))
    weights = np.concatenate([gate[:, None] * weights, (1 - gate[:, None]) * own], 1)
    return weights, np.concatenate([values, ids], 1)


def aggregate(weights: Array, values: Array, top_mass: float, n_vocab: int) -> dict[str, Array]:
    """The probability of each token, as CSR arrays: the weights of equal tokens are added up.

    weights   float64 [n, k], rows sum to 1 or 0
    values    uint32 [n, k], the token that each weight is for, below n_vocab
    top_mass  of a row the likeliest tokens are kept that hold this share of it, ROW_BYTES at most; 1: all

    Probabilities that float16 rounds to 0 (below 3e-8) are left out.
    """
    n, k = weights.shape
    order = values.argsort(axis=1, kind="stable")
    values, weights = np.take_along_axis(values, order, 1), np.take_along_axis(weights, order, 1)
    first = np.ones((n, k), bool)
    first[:, 1:] = values[:, 1:] != values[:, :-1]
    shares = np.add.reduceat(weights.reshape(-1), first.reshape(-1).nonzero()[0])
    ids, rows = values[first], np.repeat(np.arange(n), first.sum(1))
    ids = ids.astype(np.uint16 if n_vocab <= 1 << 16 else np.uint32)
    probs = shares.astype(np.float16)
    kept = probs > 0
    if top_mass < 1:
        most = ROW_BYTES // (ids.itemsize + probs.itemsize)
        kept &= _likeliest(shares, rows, first.sum(1), top_mass, most)
    offsets = np.zeros(n + 1, np.uint32)
    np.cumsum(np.bincount(rows[kept], minlength=n), out=offsets[1:])
    return {"offsets": offsets, "ids": ids[kept], "probs": probs[kept]}


def _normalised(weights: Array) -> Array:
    """Rows that sum to 1, or to 0 as they did."""
    sums = weights.sum(1, keepdims=True)
    return np.asarray(np.divide(weights, sums, where=sums > 0, out=np.zeros_like(weights)))


def join(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """CSR arrays of consecutive positions as one, of MAX_PAIRS pairs at most. Raises NumericsError for more."""
    ends = np.concatenate([[0], *(np.diff(part["offsets"]) for part in parts)]).cumsum(dtype=np.int64)
    if ends[-1] > MAX_PAIRS:
        raise NumericsError(f"{ends[-1]} pairs of ids and probabilities are more than one shard of targets can hold")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("ids", "probs")}
    return {"offsets": ends.astype(np.uint32), **joined}


def _likeliest(shares: Array, rows: Array, lengths: Array, top_mass: float, most: int) -> Array:
    """Which shares to keep, bool [pairs]: of each row the largest, until they reach top_mass or are `most`.

    shares  float64 [pairs]; rows  int64 [pairs], ascending, the row of each; lengths  int64 [n], pairs of each row
    """
    order = np.lexsort((-shares, rows))  # rows stay where they are, largest first in each
    above, rank = np.cumsum(shares[order]) - shares[order], np.arange(len(shares))
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = np.empty(len(shares), bool)
    kept[order] = (above - above[starts] < top_mass) & (rank - starts < most)
    return kept


@dataclass(frozen=True)
class Support:
    """Targets of some positions: CSR with probabilities that sum to 1 in float32."""

    offsets: Tensor  # int64 [n + 1], on the CPU, which divides the work by them
    ids: Tensor  # int64 [pairs]
    probs: Tensor  # float32 [pairs]

    @staticmethod
    def empty(n: int) -> "Support":
        """No target at any of n positions, for beta = 0."""
        return Support(torch.zeros(n + 1, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0))

    def to(self, device: torch.device) -> "Support":
        """The same with ids and probabilities on a device."""
        return Support(self.offsets, send(self.ids, device), send(self.probs, device))


class Targets:
    """The target shards of a finished cache, all checked against their digests when this is made.

    A shard is mapped into memory only while it is read: a map holds its file open, and systems allow a few hundred.
    Raises StageError naming a shard that is missing, torn or changed.
    """

    def __init__(self, stage: Stage, names: list[str]) -> None:
        self._stage, self._names = stage, names
        self._starts = np.cumsum([0, *(len(stage.read(name)["offsets"]) - 1 for name in names)])

    def rows(self, starts: list[int], length: int) -> Support:
        """Targets of positions start ... start + length - 1 for each start; no run crosses a shard's border."""
        offsets, ids, probs = [np.zeros(1, np.int64)], [], []
        for start in starts:
            number = int(np.searchsorted(self._starts, start, side="right")) - 1
            shard, row = self._stage.read(self._names[number]), start - int(self._starts[number])
            bounds = shard["offsets"][row : row + length + 1].astype(np.int64)
            pairs = slice(bounds[0], bounds[-1])
            lengths = np.diff(bounds)
            sums = np.bincount(np.repeat(np.arange(length), lengths), shard["probs"][pairs], length)
            offsets.append(bounds[1:] - bounds[0] + offsets[-1][-1])
            ids.append(shard["ids"][pairs].astype(np.int64))
            probs.append((shard["probs"][pairs] / np.repeat(sums, lengths)).astype(np.float32))
        return Support(*(torch.from_numpy(np.concatenate(parts)) for parts in (offsets, ids, probs)))
