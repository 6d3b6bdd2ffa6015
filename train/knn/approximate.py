"""Approximate nearest neighbours for datastores that are too big for exact search: faiss indexes on the CPU.

    ivfpq  about 2 sqrt(n) inverted lists; a key is its list's centre and a residual, product-quantised to 4 bits for
           every 2 dimensions, which SIMD scans
    hnsw   a navigable graph over float16 keys: 2 d + 256 bytes a key, slow to build; never chosen by itself

An index only proposes candidates; their distances are measured on the keys themselves. faiss is imported where an index
is made or read: exact search does without it. Knows nothing of tokens and stages.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memdec_edge.errors import MissingExtraError
from memdec_edge.files import atomic_path

from .exact import Exact, Neighbours, gather, products

EXACT_UP_TO = {"cpu": 1_000_000, "cuda": 50_000_000}  # keys; as many queries take an hour or two
POINTS_PER_LIST = 40  # keys on which the lists are trained; faiss asks for 39
PROBES = 64  # lists scanned for a query
CANDIDATES = 2, 64  # proposed: 2 for each neighbour wanted, and 64 more
ADD_ROWS = 65536  # keys added at a time
LINKS = 32  # of a key in the graph, twice as many on the lowest level
DEPTH = 64  # of the search while the graph is built; afterwards at least


def choose(search: str, n_keys: int, device: str) -> str:
    """How neighbours are found, "exact", "ivfpq" or "hnsw", where `search` asks for one of these or for "auto".

    auto is exact search up to a million keys on a CPU and 50 million on CUDA, and ivfpq beyond. Raises
    MissingExtraError where the answer needs faiss and that is not installed.
    """
    if search == "auto":
        search = "exact" if n_keys <= EXACT_UP_TO.get(device, EXACT_UP_TO["cpu"]) else "ivfpq"
    if search != "exact" and find_spec("faiss") is None:
        raise MissingExtraError("faiss", "train")
    return search


def build(kind: str, keys: Sequence[np.ndarray], path: Path) -> None:
    """Index a datastore and write the index to `path`. The same keys give the same index. Raises OutputError.

    kind  "ivfpq" or "hnsw"
    keys  shards float16 [n_i, d], read one after the other
    """
    import faiss

    n, d = sum(map(len, keys)), keys[0].shape[1]
    index = _ivfpq(n, d) if kind == "ivfpq" else _hnsw(d)
    size = min(n, POINTS_PER_LIST * _lists(n))
    index.train(gather(keys, np.arange(size) * n // size).astype(np.float32))
    for shard in keys:
        for low in range(0, len(shard), ADD_ROWS):
            index.add(np.asarray(shard[low : low + ADD_ROWS], np.float32))
    with atomic_path(path) as part:
        try:
            faiss.write_index(index, str(part))
        except RuntimeError as error:  # how faiss says that the disk is full
            raise OSError(str(error).splitlines()[-1]) from error


def _lists(n: int) -> int:
    return max(1, min(round(2 * sqrt(n)), n // POINTS_PER_LIST))


def _ivfpq(n: int, d: int) -> Any:
    import faiss

    pieces = next(pieces for pieces in range(max(1, d // 2), 0, -1) if d % pieces == 0)
    index = faiss.index_factory(d, f"IVF{_lists(n)},PQ{pieces}x4fs")
    faiss.ParameterSpace().set_index_parameter(index, "nprobe", PROBES)
    return index


def _hnsw(d: int) -> Any:
    import faiss

    index: Any = faiss.index_factory(d, f"HNSW{LINKS}_SQfp16")
    index.hnsw.efConstruction = DEPTH
    return index


class Index:
    """An index on disk, and the keys from which build() made it."""

    def __init__(self, path: Path, keys: Sequence[np.ndarray]) -> None:
        """Read it into memory; the keys may stay on disk."""
        import faiss

        self._index: Any = faiss.read_index(str(path))
        self._is_graph = isinstance(self._index, faiss.IndexHNSW)
        self.exact = Exact(keys, torch.device("cpu"))

    def search(self, queries: Tensor, k: int, first_position: int | None = None) -> Neighbours:
        """Roughly what Exact.search() gives; where fewer than k are found, the rest has distance inf and index -1.

        A call reads all keys once. So give thousands of queries in one call; each takes about 80 kB at k = 1024.
        """
        queries = queries.cpu().float()
        wanted = min(CANDIDATES[0] * k + CANDIDATES[1], self._index.ntotal)
        if self._is_graph:  # it measures in float16 already
            wanted = min(k + 1, wanted)
            self._index.hnsw.efSearch = max(wanted, DEPTH)
        candidates = torch.from_numpy(self._index.search(queries.numpy(), wanted)[1])
        if first_position is not None:
            own = torch.arange(first_position, first_position + len(queries))[:, None]
            candidates.masked_fill_(candidates == own, -1)
        return self._measure(queries - self.exact.centre, candidates.sort(1).values, k)

    def _measure(self, queries: Tensor, candidates: Tensor, k: int) -> Neighbours:
        """The k nearest of each query's candidates.

        queries     float32 [q, d], centred
        candidates  int64 [q, c], ascending in a row; -1: none
        """
        width = candidates.shape[1]
        distances = torch.full(candidates.shape, torch.inf)
        lower = torch.searchsorted(candidates, torch.zeros(len(queries), 1, dtype=torch.int64))
        for start, keys in self.exact.tiles():
            edge = torch.full((len(queries), 1), start + len(keys))
            upper = torch.searchsorted(candidates, edge)
            counts = (upper - lower).squeeze(1)
            ends = counts.cumsum(0)
            shift = torch.arange(len(queries)) * width + lower.squeeze(1) - (ends - counts)
            at = torch.repeat_interleave(shift, counts) + torch.arange(int(ends[-1]))
            column = candidates.view(-1)[at] - start
            norms = keys.square().sum(1)
            distances.view(-1)[at] = norms[column] - 2 * products(queries, keys, ends, column)
            lower = upper
        nearest, order = distances.topk(k, largest=False)
        nearest += queries.square().sum(1, keepdim=True)
        return Neighbours(nearest.clamp_(min=0), candidates.gather(1, order).where(nearest.isfinite(), -1))


def share_of_mass(truth: Neighbours, found: Neighbours, tau: float) -> float:
    """The share of the exact kNN mass that an approximate search finds, 0 to 1, as a mean over the queries.

    The mass of a set of neighbours is the sum of exp(-(d - d_0) / tau); d_0 is the distance of the nearest one.
    """
    weights = torch.exp((truth.distances[:, :1] - truth.distances) / tau)
    sorted_ids = found.indices.sort(1).values
    place = torch.searchsorted(sorted_ids, truth.indices).clamp_(max=sorted_ids.shape[1] - 1)
    hits = sorted_ids.gather(1, place) == truth.indices
    return float(((weights * hits).sum(1) / weights.sum(1)).mean())
