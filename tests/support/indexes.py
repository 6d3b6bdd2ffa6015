"""Tiny indexes of token ids, and what they must say, by reading the documents from end to end.

Knows nothing of suffix arrays.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memdec_edge.gguf.index_file import tokenizer_of, write_index
from memdec_edge.indexing.sort import sorted_prefixes
from memdec_edge.progress import progress

TRUST = (0.25, 0.25, 0.5, 0.5, 0.5, 0.75, 0.75, 1.0)  # exact in float32
LENGTHS = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 9), (10, 15), (16, 48))


def documents(seed: int, count: int = 12, length: int = 60, n_vocab: int = 400) -> list[list[int]]:
    """Documents that repeat parts of each other, so that matches of every length occur."""
    random = np.random.default_rng(seed)
    parts = [random.integers(1, n_vocab, size).tolist() for size in (2, 3, 5, 8, 12, 20)]
    found: list[list[int]] = []
    for _ in range(count):
        text: list[int] = []
        while len(text) < length:
            text += parts[random.integers(len(parts))] if random.random() < 0.6 else [int(random.integers(1, 40))]
        found.append(text)
    return found


def tiny_index(path: Path, base: Path, texts: Sequence[Sequence[int]], trust: Sequence[float] = TRUST) -> Path:
    """An index of token ids for a base; its documents are called "text 1", "text 2" and so on."""
    digest, n_vocab = tokenizer_of(base)
    end = int(np.iinfo(np.uint16).max)
    tokens = np.array([token for text in texts for token in (*text, end)], np.uint16)
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)]).astype(np.uint64)
    with progress("sorting", len(tokens), "tokens") as advance:
        prefixes = sorted_prefixes(tokens, n_vocab, advance)
    names = [f"text {number}" for number in range(1, 1 + len(texts))]
    write_index(path, tokens=tokens, prefixes=prefixes, starts=starts, names=names, trust=trust, digest=digest,
                n_vocab=n_vocab)  # fmt: skip
    return path


def by_reading(texts: Sequence[Sequence[int]], context: Sequence[int]) -> tuple[int, dict[int, float]]:
    """The class of the longest match of `context`, and the probabilities of what follows it."""
    for length in range(min(48, len(context)), 0, -1):
        wanted = list(context[-length:])
        follow = Counter(
            text[at + length]
            for text in texts
            for at in range(len(text) - length)
            if list(text[at : at + length]) == wanted
        )
        if follow:
            klass = next(c for c, (low, high) in enumerate(LENGTHS, 1) if low <= length <= high)
            return klass, {token: count / follow.total() for token, count in follow.items()}
    return 0, {}
