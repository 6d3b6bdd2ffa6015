"""Exact nearest neighbours by squared L2 distance, tile by tile, on CPU or CUDA. Knows nothing of tokens and indexes.

A key x is near a query q where its score  s = q.x - |x|^2 / 2 - t  is large. A sample of the keys gives each query its
t, such that somewhat more than k keys have s > 0. Keys and queries are centred first, which changes no distance. The
last two terms are columns of the matrix product itself, so one product in the device's fastest type gives s. Its
rounding is relative to the distance from the cut. Keys with s > 0 are candidates: they are measured again in float32.

Some queries are searched again. Fewer than k keys may pass, or the k nearest may be no further from the cut than the
rounding that was seen among the query's own candidates. The second search is in float32, the third takes all keys as
candidates. So the answer is exact but for the rounding of float32, whatever the keys.
"""

import warnings
from collections.abc import Iterator, Sequence
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models import work_dtype

SAMPLE = 4096, 16384  # least and most keys on which t is estimated; in between one of 16
PIECES = 3  # of bfloat16, which together hold a float32


class Tiles(NamedTuple):
    """How the work is divided."""

    queries: int  # whose candidates are collected in one pass over the keys
    rows: int  # queries of one matrix product
    keys: int  # of one matrix product


ON_CPU = Tiles(4096, 1024, 8192)  # scores that stay in a cache


def on_cuda(free: int) -> Tiles:
    """Tiles for a card with so many bytes free: so large that a product takes longer than the calls around it.

    A tile of scores takes up to a 40th of that in bfloat16, and about as much again where candidates are picked.
    """
    keys = 65536
    rows = 1 << max(1024, min(8192, free // (40 * 2 * keys))).bit_length() - 1
    return Tiles(4 * rows, rows, keys)


class Neighbours(NamedTuple):
    """distances float32 [q, k], squared L2, >= 0, nearest first; indices int64 [q, k] into the datastore."""

    distances: Tensor
    indices: Tensor


class Exact:
    """Exact search in a datastore on a device.

    Memory holds the sample, a tile of keys, a tile of scores, and the candidates of 4,096 queries, on CUDA of 16,384,
    at 12 bytes each. At k = 1024 a query of a million keys has some 3,500 candidates, which makes 300 MB in all on a
    CPU. Ten million keys give 13,000 candidates, fifty million 49,000 and 2.4 GB, since the sample is bounded. CUDA
    holds the keys, too, where they fit into half of its free memory.
    """

    def __init__(self, keys: Sequence[np.ndarray], device: torch.device) -> None:
        """keys: shards float16 [n_i, d], one after the other the datastore; they are read tile by tile."""
        self.device, self.n = device, sum(map(len, keys))
        self.dtype = work_dtype(device.type)  # of the first pass
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        self.tiling = on_cuda(free) if device.type == "cuda" else ON_CPU
        sample = torch.from_numpy(gather(keys, sample_positions(self.n))).to(device).float()
        self.centre = sample.mean(0)
        self.sample = sample - self.centre
        self._shards: Sequence[np.ndarray] | list[Tensor] = keys
        if 4 * self.n * self.sample.shape[1] < free:
            whole = torch.empty(self.n, self.sample.shape[1], dtype=torch.float16, device=device)
            for part, shard in zip(torch.split(whole, [len(shard) for shard in keys]), keys, strict=True):
                part.copy_(_readonly(shard))
            self._shards = [whole]

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        """All keys in order, centred, float32 [at most tiling.keys, d], each tile with the index of its first key."""
        start = 0
        for shard in self._shards:
            for tile in torch.split(shard if isinstance(shard, Tensor) else _readonly(shard), self.tiling.keys):
                yield start, tile.to(self.device).float().sub_(self.centre)
                start += len(tile)

    @torch.no_grad()
    def search(self, queries: Tensor, k: int, first_position: int | None = None) -> Neighbours:
        """The k nearest keys of each query.

        queries         [q, d], any float type
        k               at most the number of keys (less one with first_position)
        first_position  the queries are the keys first_position, first_position + 1, ... themselves; each skips itself.
                        A copy of the key elsewhere in the text is a fair neighbour
        """
        queries = queries.to(self.device).float() - self.centre
        own = torch.arange(len(queries), device=self.device)
        own = torch.full_like(own, -self.n) if first_position is None else own + first_position
        found = Neighbours(queries.new_empty(len(queries), k), own.new_empty(len(queries), k))
        ways = dict.fromkeys([(self.dtype, False), (torch.float32, False), (torch.float32, True)])
        todo = torch.arange(len(queries), device=self.device)
        for dtype, everything in ways:
            uncertain = [todo[:0]]
            for rows in torch.split(todo, self.tiling.queries):
                found.distances[rows], found.indices[rows], sure = _Pass(
                    self, queries[rows], own[rows], k, dtype, everything
                ).run()
                uncertain.append(rows[~sure])
            todo = torch.cat(uncertain)
            if len(todo) == 0:
                break
        return found


class _Pass:
    """One pass over all keys for at most tiling.queries queries, in one type."""

    def __init__(
        self, exact: Exact, queries: Tensor, own: Tensor, k: int, dtype: torch.dtype, everything: bool
    ) -> None:
        """queries: float32 [q, d], centred; own: int64 [q], the key that each query is, negative where it is none."""
        self.exact, self.queries, self.own, self.k = exact, queries, own, k
        n, size = exact.n, len(exact.sample)
        # with s = 0 at this rank of the sample, fewer than k of all keys pass for one query in a thousand (3 sigma)
        rank = ceil((1.5 + sqrt(2.25 + k * size / n)) ** 2)
        self.everything = everything or rank >= size
        self.dtype = dtype = torch.float32 if self.everything else dtype  # its scores are not measured again
        self.threshold = self._thresholds(min(rank, size))
        ones = torch.ones(len(own), PIECES, dtype=dtype, device=own.device)
        self.left = torch.cat([queries.to(dtype), ones, _pieces(-self.threshold, dtype)], 1)
        width = k if self.everything else ceil(1.6 * rank * n / size) + 64
        self.scores = queries.new_full((len(own), width), -torch.inf)
        self.indices = own.new_zeros(len(own), width)
        self.filled = own.new_zeros(len(own))
        self.rounding = queries.new_zeros(len(own))  # the largest seen, that of the operands

    def _thresholds(self, rank: int) -> Tensor:
        """The rank-th largest q.x - |x|^2 / 2 in the sample, float32 [q]."""
        half = self.exact.sample.square().sum(1) / -2
        scores = (
            torch.addmm(half, rows, self.exact.sample.T) for rows in torch.split(self.queries, self.exact.tiling.rows)
        )
        return torch.cat([part.topk(rank, sorted=False).values.amin(1) for part in scores])

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """Distances and indices as in Neighbours, and bool [q]: whether they are sure to be right."""
        step = self.exact.tiling.rows
        buffer = self.left.new_empty(min(step, len(self.own)) * self.exact.tiling.keys)
        for start, keys in self.exact.tiles():
            half = keys.square().sum(1) / -2
            pieces = _pieces(half, self.dtype)
            right = torch.cat([keys.to(self.dtype), pieces, torch.ones_like(pieces)], 1)
            for low in range(0, len(self.own), step):
                left, own = self.left[low : low + step], self.own[low : low + step] - start
                tile = torch.mm(left, right.T, out=buffer[: len(left) * len(right)].view(len(left), len(right)))
                here = ((own >= 0) & (own < len(right))).nonzero().squeeze(1)
                tile[here, own[here]] = -torch.inf
                rows = torch.arange(low, low + len(left), device=own.device)
                if self.everything:
                    self._merge(tile, start, rows)
                else:
                    self._append(tile, start, rows, keys, half)
        scores, order = self.scores.topk(self.k)
        distances = self.queries.square().sum(1, keepdim=True) - 2 * (scores + self.threshold[:, None])
        sure = self.everything | (scores[:, -1] >= self.rounding)  # -inf where fewer than k passed
        return distances.clamp_(min=0), self.indices.gather(1, order), sure

    def _append(self, tile: Tensor, start: int, rows: Tensor, keys: Tensor, half: Tensor) -> None:
        """Measure the keys of a tile, [len(rows), len(keys)], that have a positive score, and keep them."""
        hits = _positive(tile)
        row = hits // len(keys)
        counts = torch.bincount(row, minlength=len(rows))
        full = self.filled[rows] + counts > self.scores.shape[1]
        if full.any():  # more keys pass than the sample let expect: these queries keep the best so far
            which = full.nonzero().squeeze(1)
            exact = torch.addmm(half, self.queries[rows[which]], keys.T) - self.threshold[rows[which], None]
            self._merge(exact.where(tile[which] > -torch.inf, -torch.inf), start, rows[which])
            hits, row = hits[~full[row]], row[~full[row]]
            counts[which] = 0
        ends = counts.cumsum(0)
        column, query = hits - row * len(keys), rows[row]
        scores = rough = tile.view(-1)[hits].float()
        if self.dtype != torch.float32:
            scores = products(self.queries[rows], keys, ends, column) + half[column] - self.threshold[query]
            error = (rough - scores).abs() - rough * torch.finfo(self.dtype).eps  # the result's own keeps its sign
            self.rounding.scatter_reduce_(0, query, error, "amax")
        slot = self.filled[query] + torch.arange(len(hits), device=row.device) - (ends - counts)[row]
        self.scores[query, slot] = scores
        self.indices[query, slot] = column + start
        self.filled[rows] += counts

    def _merge(self, scores: Tensor, start: int, rows: Tensor) -> None:
        """Keep the k best of the candidates of some queries and all keys of a tile, [len(rows), keys]."""
        indices = torch.arange(start, start + scores.shape[1], device=scores.device).expand(scores.shape)
        best, order = torch.cat([self.scores[rows], scores], 1).topk(self.k)
        indices = torch.cat([self.indices[rows], indices], 1).gather(1, order)
        self.scores[rows] = torch.nn.functional.pad(best, (0, self.scores.shape[1] - self.k), value=-torch.inf)
        self.indices[rows, : self.k] = indices
        self.filled[rows] = self.k


def sample_positions(n: int) -> np.ndarray:
    """Which of n keys stand for all of them, int64 ascending: one of each of equal stretches."""
    size = min(n, max(SAMPLE[0], min(SAMPLE[1], n // 16)))
    edges = np.arange(size + 1) * n // size
    return np.random.default_rng(0).integers(edges[:-1], edges[1:])


def gather(keys: Sequence[np.ndarray], indices: np.ndarray) -> np.ndarray:
    """Keys of a datastore in shards by their indices, int64 [m] -> float16 [m, d]."""
    starts = np.cumsum([0, *map(len, keys)])
    shard = np.searchsorted(starts, indices, side="right") - 1
    rows = np.empty((len(indices), keys[0].shape[1]), np.float16)
    for i in np.unique(shard):
        rows[shard == i] = keys[i][indices[shard == i] - starts[i]]
    return rows


def products(queries: Tensor, keys: Tensor, ends: Tensor, column: Tensor) -> Tensor:
    """q.x of some pairs: row i of `queries` with the keys named by column[ends[i - 1] : ends[i]]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR")  # torch calls it beta, once
        bounds = torch.nn.functional.pad(ends, (1, 0))
        size = len(queries), len(keys)
        pairs = torch.sparse_csr_tensor(bounds, column, queries.new_zeros(len(column)), size, check_invariants=False)
        found: Tensor = torch.sparse.sampled_addmm(pairs, queries, keys.T, beta=0).values()
        return found


def _pieces(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 [n] as columns of a coarser type whose sum it is, [n, PIECES]."""
    parts = []
    for _ in range(PIECES):
        parts.append(values.to(dtype))
        values = values - parts[-1].float()
    return torch.stack(parts, 1)


def _positive(tile: Tensor) -> Tensor:
    """Flat indices of the positive scores, int64, ascending."""
    if tile.device.type != "cpu":
        return (tile > 0).view(-1).nonzero().squeeze(1)
    signed = tile.view(torch.int16) if tile.dtype == torch.bfloat16 else tile  # bfloat16's sign is int16's
    return torch.from_numpy(np.flatnonzero(signed.numpy() > 0))  # several times as fast as torch's nonzero


def _readonly(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        return torch.from_numpy(array)
