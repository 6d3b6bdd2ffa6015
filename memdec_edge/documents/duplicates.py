"""Families of documents that are equal, exactly or nearly: all of a family belong into one split.

Two documents belong together when they share FAMILY_OVERLAP of the smaller one's word 8-grams. Up to SAMPLE 8-grams all
count; of a larger corpus those count whose hashes fall into a fixed part of all, the same part in every document, so
that time and memory do not grow without end. Knows nothing of files and of splits.
"""

import re
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

SHINGLE_WORDS = 8
FAMILY_OVERLAP = 0.3  # of the smaller document's word 8-grams: two documents with that much in common are one family
SAMPLE = 4_000_000  # 8-grams that are looked at, of all documents together; 32 bytes each on the way
LEAST = 16  # 8-grams of a document that are looked at however large the corpus is
STRETCH = 1_000_000  # characters whose words are held at a time
MOST_HOLDERS = 1000  # documents of an 8-gram that others are compared with: what more hold is everywhere
_WORD = re.compile(  # scripts without blanks between words: each character is a word
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
    "|[^\\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+"
)
_FACTORS = np.array([pow(0x9E3779B97F4A7C15, i, 1 << 64) for i in range(1, SHINGLE_WORDS + 1)], np.uint64)
Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


def families(texts: Sequence[str], alike: Sequence[Sequence[str]] = ()) -> list[int]:
    """Return the family of each text, as the lowest index in it; a family holds all that pairs connect.

    alike: names that each text goes by; texts that share one are a family whatever their words
    """
    joined = _Joined(len(texts))
    first: dict[str, int] = {}
    for i, names in enumerate(alike):
        for name in names:
            joined.join(i, first.setdefault(name, i))
    if len(texts) < 2:
        return list(range(len(texts)))
    part = max(1, -(-sum(map(len, texts)) // (6 * SAMPLE)))  # a word and its blank are about six characters
    shingles = [_shingles(text, part) for text in texts]
    sizes = np.array([len(each) for each in shingles])
    owner = np.repeat(np.arange(len(texts)), sizes)
    _, ids, holders = np.unique(np.concatenate(shingles), return_inverse=True, return_counts=True)
    # an inverted index: postings[starts[s]:starts[s + 1]] are the documents that hold shingle s
    postings, starts = owner[np.argsort(ids, kind="stable")], np.concatenate([[0], np.cumsum(holders)])
    for i, mine in enumerate(np.split(ids, np.cumsum(sizes)[:-1])):
        shared = [postings[starts[s] : starts[s] + min(holders[s], MOST_HOLDERS)] for s in mine[holders[mine] > 1]]
        if shared:
            others, counts = _counted(np.concatenate(shared), len(texts))
            for j in others[counts >= FAMILY_OVERLAP * np.minimum(sizes[others], sizes[i])]:
                joined.join(i, int(j))
    return [joined.root(i) for i in range(len(texts))]


def _counted(indices: Indices, n: int) -> tuple[Indices, Indices]:
    """The distinct of some indices below n, and how often each occurs: sorted where they are few, else counted."""
    if 16 * len(indices) < n:
        return np.unique(indices, return_counts=True)
    counts = np.bincount(indices, minlength=n)
    others = np.flatnonzero(counts)
    return others, counts[others]


class _Joined:
    """Disjoint sets of indices."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i

    def join(self, i: int, j: int) -> None:
        i, j = self.root(i), self.root(j)
        self._parent[max(i, j)] = min(i, j)


def _shingles(text: str, part: int) -> Hashes:
    """The distinct word 8-grams of a text as hashes, one in `part` of them and LEAST at least, sorted.

    A text of fewer words is one shingle. Every process computes the same hashes.
    """
    bound = np.uint64((1 << 64) // part) if part > 1 else np.uint64((1 << 64) - 1)
    found = np.empty(0, np.uint64)
    for start in range(0, max(1, len(text)), STRETCH):
        some = _hashes(text[start : start + STRETCH])
        found = np.union1d(found, some if part == 1 else some[: max(LEAST, int(np.searchsorted(some, bound)))])
    return found[: max(LEAST, int(np.searchsorted(found, bound, side="right")))]


def _hashes(text: str) -> Hashes:
    """The distinct word 8-grams of a text as hashes, sorted."""
    words = np.fromiter(
        (crc32(found[0].encode("utf-8", "replace")) for found in _WORD.finditer(text.lower())), np.uint64
    )
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    found = np.zeros(last, np.uint64)
    for i, factor in enumerate(_FACTORS[: len(words)]):
        found += (words[i : i + last] + np.uint64(1)) * factor
    found ^= found >> np.uint64(31)  # the low digits of a sum of products follow those of the words
    found *= _FACTORS[0]
    return np.unique(found ^ (found >> np.uint64(29)))
