"""match(), group_prefixes() and sort_prefixes() of memdec_edge/_native.pyi in NumPy: plain searches, plain sorts.

Knows nothing of which implementation runs.
"""

from array import array

import numpy as np
import numpy.typing as npt

from memdec_edge.mixture.rows import LONGEST, MOST, Ids, Row

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Positions = npt.NDArray[np.uint32]


def match(
    tokens: Tokens, prefixes: Positions, n_vocab: int, context: "array[int]",
    ids: Ids, probs: Row, /,
) -> tuple[int, int, int]:  # fmt: skip
    """Write the tokens that follow the longest match of `context`, the newest token last, and their shares.

    Returns its length, how many were written, and the position of the likeliest in `tokens`; (0, 0, -1) for none.
    """
    newest_first = np.asarray(context, np.int64)[::-1]
    unknown = np.flatnonzero((newest_first < 0) | (newest_first >= n_vocab))
    pattern = (newest_first[: unknown[0]] if len(unknown) else newest_first)[:LONGEST]
    search = _Search(tokens, prefixes, pattern)
    at = search.first(len(pattern), after=False)
    length = max(
        (search.compare(near, len(pattern))[0] for near in (at - 1, at) if 0 <= near < len(prefixes)), default=0
    )
    if not length:
        return 0, 0, -1
    low, high = search.first(length, after=False), search.first(length, after=True)
    count = min(high - low, MOST)
    sampled = low + np.arange(count) * (high - low) // count
    where = prefixes[sampled].astype(np.int64)
    where = np.sort(where[where < len(tokens)])
    where = where[tokens[where] < n_vocab]  # only a damaged index has others
    found, first, counts = np.unique(tokens[where], return_index=True, return_counts=True)
    if not len(found):
        return 0, 0, -1
    ids[: len(found)] = found
    probs[: len(found)] = counts / len(where)
    return length, len(found), int(where[first[counts.argmax()]])


def group_prefixes(tokens: Tokens, n_vocab: int, prefixes: Positions, ends: npt.NDArray[np.uint64], /) -> None:
    """Fill `prefixes` with each position after a token of its document, by that token and then by position.

    `ends` [n_vocab] gets where those after each token end.
    """
    inside = tokens < n_vocab
    found = np.flatnonzero(inside[1:] & inside[:-1]) + 1
    if len(found) != len(prefixes):
        raise ValueError(f"room for {len(prefixes)} prefixes of {len(found)}")
    before = tokens[found - 1]
    prefixes[:] = found[np.argsort(before, kind="stable")]
    ends[:] = np.cumsum(np.bincount(before, minlength=n_vocab))


def sort_prefixes(tokens: Tokens, n_vocab: int, prefixes: Positions, shared: int, /) -> None:
    """Sort prefixes whose nearest `shared` tokens are the same, in place: one stable sort for each token from there."""
    prefixes.sort()
    outside = np.flatnonzero(tokens >= n_vocab)
    begins = np.concatenate([[0], outside + 1])
    n_before = prefixes - begins[np.searchsorted(begins, prefixes, "right") - 1]  # tokens of the same document
    for depth in reversed(range(shared, LONGEST)):
        keys = tokens[prefixes - np.minimum(depth + 1, n_before)]
        keys[n_before <= depth] = np.iinfo(tokens.dtype).max
        order = np.argsort(keys, kind="stable")
        prefixes[:], n_before = prefixes[order], n_before[order]


class _Search:
    """Binary search among prefixes, each read backwards."""

    def __init__(self, tokens: Tokens, prefixes: Positions, pattern: npt.NDArray[np.int64]) -> None:
        self.tokens, self.prefixes, self.pattern = tokens, prefixes, pattern

    def compare(self, i: int, length: int) -> tuple[int, int]:
        """How many tokens of the pattern's first `length` the i-th prefix shares, and the order: -1, 0 or 1.

        -1: the prefix comes before the pattern. 0: it begins with the pattern.
        """
        position = int(self.prefixes[i])
        if position > len(self.tokens):  # only a damaged index has one
            return 0, -1
        text = self.tokens[max(position - length, 0) : position][::-1].astype(np.int64)
        differing = np.flatnonzero(text != self.pattern[: len(text)])
        if not len(differing):
            return len(text), 0 if len(text) == length else 1  # before the first token there is an END
        shared = int(differing[0])
        return shared, -1 if text[shared] < self.pattern[shared] else 1

    def first(self, length: int, *, after: bool) -> int:
        """The first prefix that begins with the pattern's first `length` tokens or comes after it.

        after: the first that comes after all those that begin with it.
        """
        low, high = 0, len(self.prefixes)
        while low < high:
            middle = (low + high) // 2
            if self.compare(middle, length)[1] < (1 if after else 0):
                low = middle + 1
            else:
                high = middle
        return low
