"""Tiny indexes from lists of token ids, and the plain truth about them."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from memdec_edge.gguf.index_file import Tokens, token_type, write_index
from memdec_edge.indexing.sort import sorted_prefixes
from memdec_edge.indexing.trust import Part
from memdec_edge.mixture.rows import LONGEST

Document = list[int]


def joined(documents: list[Document], n_vocab: int) -> Tokens:
    """The documents as an index has them, END after each."""
    end = int(np.iinfo(token_type(n_vocab)).max)
    numbers = np.array([token for document in documents for token in [*document, end]])
    return numbers.astype(np.uint16) if end == 65_535 else numbers.astype(np.uint32)


def indexed(documents: list[Document], n_vocab: int) -> Part:
    """An index in memory."""
    tokens = joined(documents, n_vocab)
    return Part(tokens, sorted_prefixes(tokens, n_vocab), n_vocab)


def index_file(path: Path, documents: list[Document], n_vocab: int, **changes: Any) -> Path:
    """An index GGUF; `changes` replace arguments of write_index()."""
    part = indexed(documents, n_vocab)
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)]).astype(np.uint64)
    facts: dict[str, Any] = {
        "tokens": part.tokens, "prefixes": part.prefixes, "starts": starts,
        "names": [f"{number}.txt" for number in range(len(documents))], "trust": [0.1] * 7 + [1.0],
        "digest": "0" * 64, "n_vocab": n_vocab,
    }  # fmt: skip
    write_index(path, **facts | changes)
    return path


def longest_match(documents: list[Document], context: list[int]) -> tuple[int, Counter[int]]:
    """Length of the longest match, by trying each, and what follows its occurrences."""
    for length in range(min(LONGEST, len(context)), 0, -1):
        wanted = context[-length:]
        found = Counter(
            document[at + length]
            for document in documents
            for at in range(len(document) - length)
            if document[at : at + length] == wanted
        )
        if found:
            return length, found
    return 0, Counter()
