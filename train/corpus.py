"""Text into tokens: split documents, pack each split into one stream of uint32 token ids.

A folder with train.jsonl in it names its splits: train/valid/test.jsonl. Splits that a corpus does not name are taken
from its training documents. A seed orders the documents of a split at random, so that a token limit takes a fair
sample. They are packed as [BOS] document EOS, with BOS only where the tokenizer adds it. Knows nothing of models and of
file formats.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdec_edge.documents import NO_TEXT, SPLITS, read_file, split_files
from memdec_edge.errors import CorpusError

Tokens = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Encoder:
    """How a model's text becomes tokens."""

    encode: Callable[[list[str]], list[list[int]]]  # texts -> token ids, special tokens neither added nor parsed
    bos: int | None  # where the tokenizer puts one before a text
    eos: int


def split_documents(path: Path, valid: float, test: float, seed: int) -> dict[str, list[str]]:
    """Documents of each split, in seeded random order.

    Splits that the corpus does not name are taken from its training documents: fractions `valid` and `test` of them, at
    least one document each, and none where the fraction is 0. When a single document is left, its tail is cut off.
    Raises CorpusError when there is no text, and what read_file() raises.
    """
    named = split_files(path)
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, files in named.items():
        splits[split] = _shuffled([document for file in files for document in read_file(file)], seed)
    documents = splits["train"]
    if not documents:
        raise CorpusError(path, NO_TEXT)
    total = len(documents)
    shares = {split: share for split, share in (("valid", valid), ("test", test)) if share and split not in named}
    for later, (split, share) in zip(reversed(range(len(shares))), shares.items(), strict=True):
        if len(documents) == 1:
            documents[0], tail = _cut(documents[0], share)
            splits[split] = [tail] if tail.strip() else []
        else:
            most = max(1, len(documents) - 1 - later)  # a document each for the splits that are still to be made
            count = min(max(1, round(share * total)), most)
            splits[split], documents = documents[:count], documents[count:]
    splits["train"] = documents
    return splits


def _cut(document: str, share: float) -> tuple[str, str]:
    """Head and tail, about `share` of it, cut at white space."""
    target = len(document) - int(share * len(document))
    at = max(document.rfind("\n", 0, target), document.rfind(" ", 0, target), 0) or len(document)
    return document[:at], document[at:]


def _shuffled(documents: list[str], seed: int) -> list[str]:
    return [documents[i] for i in np.random.default_rng(seed).permutation(len(documents))]


def pack(documents: list[str], encoder: Encoder, limit: int) -> Tokens:
    """Token ids of `documents` one after the other, uint32 [n]; at most `limit` of them unless it is 0."""
    head = [] if encoder.bos is None else [encoder.bos]
    packed = array("I")  # grows in place: parts that are joined in the end would be held twice
    for start in range(0, len(documents), 64):
        for ids in encoder.encode(documents[start : start + 64]):
            packed.extend([*head, *ids, encoder.eos])
        if limit and len(packed) >= limit:
            break
    tokens = np.frombuffer(packed, np.uint32) if packed else np.empty(0, np.uint32)
    return tokens[:limit] if limit else tokens
