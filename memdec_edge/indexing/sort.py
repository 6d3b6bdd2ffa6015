"""Sorting the prefixes of documents by the text before them. Knows nothing of text and of files."""

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def sort_prefixes(tokens: Tokens) -> npt.NDArray[np.uint32]:
    """The `prefixes` of gguf/index_file.py for its `tokens`.

    Prefix doubling over the reversed tokens (Manber and Myers 1993) until all that differ in 64 tokens are apart.
    """
    n, end = len(tokens), np.iinfo(tokens.dtype).max
    rank = np.unique(tokens[::-1], return_inverse=True)[1].astype(np.int64)
    width = 1
    order = np.argsort(rank, kind="stable")
    while width < 64:
        behind = np.full(n, rank.max() + 1, np.int64)
        behind[: max(n - width, 0)] = rank[width:]
        key = rank * (int(behind.max()) + 1) + behind
        order = np.argsort(key, kind="stable")
        sorted_key = key[order]
        rank[order] = np.concatenate([[0], np.cumsum(sorted_key[1:] != sorted_key[:-1])])
        width *= 2
        if rank[order[-1]] == n - 1:
            break
    position: npt.NDArray[np.int64] = n - order
    position = position[position < n]
    return position[(tokens[position] != end) & (tokens[position - 1] != end)].astype(np.uint32)
