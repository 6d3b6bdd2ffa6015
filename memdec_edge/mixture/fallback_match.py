"""match() of memdec_edge/_native.pyi in NumPy: the specification, by plain binary searches.

Its answers are those of native/match.c also where the prefixes are not sorted. Knows nothing of which implementation
runs.
"""

from array import array

import numpy as np
import numpy.typing as npt

from memdec_edge.mixture.rows import LONGEST, MOST, Ids, Row

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def match(
    tokens: Tokens, prefixes: npt.NDArray[np.uint32], n_vocab: int, context: "array[int]",
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
    where = prefixes[low + np.arange(count) * (high - low) // MOST if high - low > MOST else np.arange(low, high)]
    where = where[where < len(tokens)]
    where = where[tokens[where] < n_vocab]  # only a damaged index has others
    found, first, counts = np.unique(tokens[where], return_index=True, return_counts=True)
    if not len(found):
        return 0, 0, -1
    ids[: len(found)] = found
    probs[: len(found)] = counts / np.float32(len(where))
    return length, len(found), int(where[first[counts.argmax()]])


class _Search:
    """Binary search among prefixes, each read backwards."""

    def __init__(self, tokens: Tokens, prefixes: npt.NDArray[np.uint32], pattern: npt.NDArray[np.int64]) -> None:
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
