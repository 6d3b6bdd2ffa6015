"""Exact nearest neighbours, tile by tile, on CPU or CUDA. Knows nothing of tokens and files.

||q - x||^2 = ||q||^2 + ||x||^2 - 2 q.x: one matrix product a tile, in float32. No array is larger than a tile, and the
k best are merged over tiles, so memory does not grow with the number of keys.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

QUERY_TILE = 1024
KEY_TILE = 16384  # QUERY_TILE x KEY_TILE float32: 64 MiB


@torch.no_grad()
def search(
    queries: Tensor, key_shards: Iterable[Tensor], k: int, first_position: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest keys of each query by squared L2 distance, nearest first.

    queries         [q, d], any float type; the device to work on
    key_shards      tensors [m_i, d], one after the other the datastore; k <= sum of m_i (less one with first_position)
    first_position  the queries are keys first_position, first_position + 1, ... themselves: each skips itself and
                    nothing else (a copy of the key elsewhere in the text is a fair neighbour)

    Returns distances float32 [q, k] (>= 0) and indices int64 [q, k] into the datastore.
    """
    queries = queries.float()
    n, device = len(queries), queries.device
    best = torch.full((n, k), torch.inf, device=device)
    index = torch.zeros((n, k), dtype=torch.int64, device=device)
    buffer = torch.empty(QUERY_TILE * KEY_TILE, device=device)
    start = 0
    for shard in key_shards:
        for keys in torch.split(shard, KEY_TILE):
            keys = keys.to(device).float()
            norms = keys.square().sum(1)
            for low in range(0, n, QUERY_TILE):
                rows = slice(low, min(low + QUERY_TILE, n))
                height = rows.stop - low
                tile = buffer[: height * len(keys)].view(height, len(keys))
                torch.addmm(norms, queries[rows], keys.T, alpha=-2, out=tile)
                if first_position is not None:
                    own = torch.arange(rows.start, rows.stop, device=device) + (first_position - start)
                    here = ((own >= 0) & (own < len(keys))).nonzero().squeeze(1)
                    tile[here, own[here]] = torch.inf
                near, where = tile.topk(min(k, len(keys)), dim=1, largest=False, sorted=False)
                near, where = torch.cat([best[rows], near], 1), torch.cat([index[rows], where + start], 1)
                best[rows], order = near.topk(k, dim=1, largest=False)
                index[rows] = where.gather(1, order)
            start += len(keys)
    distances = best + queries.square().sum(1, keepdim=True)
    return distances.clamp_(min=0), index
