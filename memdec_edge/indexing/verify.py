"""Whether an index's arrays are what they should be. A lookup bears any arrays, and answers wrongly where they lie.

Knows nothing of how an index is made.
"""

import numpy as np
import numpy.typing as npt

from memdec_edge.errors import ModelFileError
from memdec_edge.gguf.header import DAMAGED
from memdec_edge.gguf.index_file import IndexFile
from memdec_edge.mixture.rows import LONGEST

PART = 1 << 20  # neighbours that are compared at a time

Places = npt.NDArray[np.int64]


def verify(index: IndexFile) -> None:
    """Read all of an index, and raise ModelFileError where its arrays cannot be what memdec-edge index wrote.

    Takes 1 byte of memory for each token, and seconds for ten million.
    """
    index.check_whole()
    if problem := _of_tokens(index) or _of_prefixes(index):
        raise ModelFileError(index.path, f"{problem}; {DAMAGED}")


def _of_tokens(index: IndexFile) -> str:
    end = np.iinfo(index.tokens.dtype).max
    outside = np.flatnonzero(index.tokens >= index.n_vocab)
    if len(odd := outside[index.tokens[outside] != end]):
        return f"token {index.tokens[odd[0]]} at {odd[0]} is outside the vocabulary of {index.n_vocab}"
    return "" if np.array_equal(outside, index.starts[1:] - 1) else "a document ends elsewhere than its table says"


def _of_prefixes(index: IndexFile) -> str:
    inside = index.tokens < index.n_vocab
    inside[1:] &= inside[:-1]
    inside[:1] = False  # now: whether a prefix stands for the position
    for start in range(0, len(index.prefixes), PART):
        part = index.prefixes[start : start + PART].astype(np.int64)
        if part.max() >= len(inside) or not inside[part].all():
            return "a prefix points to no token that follows another"
        inside[part] = False
        if not _rising(index, index.prefixes[start : start + PART + 1].astype(np.int64)):
            return "its prefixes are not in order"
    return "its prefixes leave out a token" if inside.any() else ""


def _rising(index: IndexFile, positions: Places) -> bool:
    """Whether prefixes are ordered: by their nearest LONGEST tokens, equal ones by position."""
    if positions.max() >= len(index.tokens):
        return False
    left, right = positions[:-1], positions[1:]
    for depth in range(1, LONGEST + 1):
        a, b = _tokens_before(index, left, depth), _tokens_before(index, right, depth)
        if (a > b).any():
            return False
        same = a == b
        ended = same & (a >= index.n_vocab)
        if (left[ended] >= right[ended]).any():
            return False
        left, right = left[same & ~ended], right[same & ~ended]
        if not len(left):
            return True
    return bool((left < right).all())


def _tokens_before(index: IndexFile, positions: Places, depth: int) -> npt.NDArray[np.unsignedinteger]:
    """The token `depth` before each position, END before the first document."""
    found: npt.NDArray[np.unsignedinteger] = index.tokens[np.maximum(positions - depth, 0)].copy()
    found[positions < depth] = np.iinfo(found.dtype).max
    return found
