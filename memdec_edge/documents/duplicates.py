"""Families of documents that are equal, exactly or nearly: all of a family belong into one split.

Two documents belong together when they share FAMILY_OVERLAP of the smaller one's word 8-grams. Up to SAMPLE 8-grams all
count; of a larger corpus those count whose hashes fall into a fixed part of all, the same part in every document, so
that time and memory do not grow without end. Knows nothing of files and of splits.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SHINGLE_WORDS = 8
FAMILY_OVERLAP = 0.3  # of the smaller document's word 8-grams: two documents with that much in common are one family
SAMPLE = 4_000_000  # 8-grams that are looked at, of all documents together; 32 bytes each on the way
LEAST = 16  # 8-grams of a document that are looked at however large the corpus is
MOST_HOLDERS = 1000  # documents of an 8-gram that others are compared with: what more hold is everywhere
_WORD = re.compile(  # scripts without blanks between words: each character is a word
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
    "|[^\\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+"
)
_FACTORS = np.array([pow(0x9E3779B97F4A7C15, i, 1 << 64) for i in range(1, SHINGLE_WORDS + 1)], np.uint64)
Hashes = npt.NDArray[np.uint64]


def families(texts: Sequence[str], alike: Sequence[Sequence[str]] = ()) -> list[int]:
    """Return the family of each text, as the lowest index in it; a family holds all that pairs connect.

    alike: names that each text goes by; texts that share one are a family whatever their words
    """
    joined = _Joined(len(texts))
    first: dict[str, int] = {}
    for i, names in enumerate(alike):
        for name in names:
            joined.join(i, first.setdefault(name, i))
    part = max(1, -(-sum(map(len, texts)) // (6 * SAMPLE)))  # a word and its blank are about six characters
    numbers: dict[str, int] = {}
    shingles = [_shingles(text, numbers, part) for text in texts]
    sizes = np.array([len(each) for each in shingles])
    if len(texts) < 2 or not sizes.any():
        return [joined.root(i) for i in range(len(texts))]
    owner = np.repeat(np.arange(len(texts)), sizes)
    _, ids, holders = np.unique(np.concatenate(shingles), return_inverse=True, return_counts=True)
    # an inverted index: postings[starts[s]:starts[s + 1]] are the documents that hold shingle s
    postings, starts = owner[np.argsort(ids, kind="stable")], np.concatenate([[0], np.cumsum(holders)])
    for i, mine in enumerate(np.split(ids, np.cumsum(sizes)[:-1])):
        shared = [postings[starts[s] : starts[s] + min(holders[s], MOST_HOLDERS)] for s in mine[holders[mine] > 1]]
        if shared:
            others, counts = np.unique(np.concatenate(shared), return_counts=True)
            for j in others[counts >= FAMILY_OVERLAP * np.minimum(sizes[others], sizes[i])]:
                joined.join(i, int(j))
    return [joined.root(i) for i in range(len(texts))]


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


def _shingles(text: str, numbers: dict[str, int], part: int) -> Hashes:
    """The distinct word 8-grams of a text as hashes, one in `part` of them and LEAST at least, sorted.

    A text of fewer words is one shingle. `numbers` numbers the words of all texts: hashes are the same in every process.
    """
    words = np.array([numbers.setdefault(found, len(numbers) + 1) for found in _WORD.findall(text.lower())], np.uint64)
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    found = np.zeros(last, np.uint64)
    for i, factor in enumerate(_FACTORS[: len(words)]):
        found += words[i : i + last] * factor
    found ^= found >> np.uint64(31)  # the low digits of a sum of products follow those of the words
    found *= _FACTORS[0]
    found = np.unique(found ^ (found >> np.uint64(29)))
    if part == 1 or len(found) <= LEAST:
        return found
    chosen = found[found < np.uint64((1 << 64) // part)]
    return chosen if len(chosen) >= LEAST else found[:LEAST]
