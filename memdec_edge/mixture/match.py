"""The longest match of a context in documents, and the distribution of the tokens that follow it there.

The match is the longest run of tokens at the context's end, up to LONGEST, that stands in one document with a token
after it (infinity-gram, arXiv 2401.17377). What follows its occurrences gives the distribution: as often as each token
stands there, over all occurrences, or MOST of them at even distances. kernels.py chooses what searches. Knows nothing
of files, models and weights.
"""

from array import array
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from memdec_edge.mixture import kernels
from memdec_edge.mixture.rows import LONGEST, MOST, Ids, Row

CLASSES = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 9), (10, 15), (16, LONGEST))  # lengths of a match, both included
_CLASS_OF = (0, *(number for number, (low, high) in enumerate(CLASSES, 1) for _ in range(low, high + 1)))


class Index(Protocol):
    """What is searched: gguf/index_file.py says what the arrays hold."""

    tokens: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    prefixes: npt.NDArray[np.uint32]
    n_vocab: int

    def check_whole(self) -> None:
        """Raise an error of memdec_edge where the arrays must not be read any more."""


class Match(NamedTuple):
    """What the documents say of the next token."""

    length: int  # tokens of the context that matched, 0 to LONGEST; 0: none, and nothing follows
    ids: Ids  # int32 [k]: tokens that follow, each once, rising; at most MOST
    probs: Row  # float32 [k]: their shares, sum 1
    where: int  # position in the index's tokens where the likeliest follows (the lowest id of several); -1: none


def class_of(length: int) -> int:
    """The class of a match of 0 to LONGEST tokens: 0 for none, else 1 to len(CLASSES)."""
    return _CLASS_OF[length]


class Matcher:
    """What one session has read, and what an index says of its next token."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._read = array("i")
        self._match: Match | None = None
        self._ids, self._probs = np.empty(MOST, np.int32), np.empty(MOST, np.float32)

    def __len__(self) -> int:
        """How many tokens were read."""
        return len(self._read)

    def extend(self, tokens: Iterable[int]) -> None:
        """Read on. Ids that the index's vocabulary lacks match nothing; each is from -2^31 to 2^31 - 1."""
        self._read.extend(tokens)
        self._match = None

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        if not 0 <= length <= len(self._read):
            raise ValueError(f"{length} tokens of {len(self._read)}")
        if length < len(self._read):
            del self._read[length:]
            self._match = None

    def match(self) -> Match:
        """What follows the tokens read so far. Raises what the index's check_whole() does."""
        if self._match is None:
            index = self.index
            index.check_whole()
            length, count, where = kernels.match(
                index.tokens, index.prefixes, index.n_vocab, self._read[-LONGEST:], self._ids, self._probs
            )
            self._match = Match(length, self._ids[:count].copy(), self._probs[:count].copy(), where)
        return self._match
