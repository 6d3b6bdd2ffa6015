"""Documents into tokens: each split is packed into one stream of uint32 token ids.

A split is packed as [BOS] document EOS, with BOS only where the tokenizer adds it. Knows nothing of models, and of how
documents are read and divided (memdec_edge/documents).
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdec_edge.long_text import token_ids

Tokens = npt.NDArray[np.uint32]
Counted = npt.NDArray[np.bool_]  # for each token of a stream whether a model learns to predict it


@dataclass(frozen=True)
class Encoder:
    """How a model's text becomes tokens."""

    encode: Callable[[list[str]], list[list[int]]]  # texts -> token ids, special tokens neither added nor parsed
    bos: int | None  # where the tokenizer puts one before a text
    eos: int


def pack(documents: list[str], encoder: Encoder, limit: int) -> Tokens:
    """Token ids of `documents` one after the other, uint32 [n]; at most `limit` of them unless it is 0."""
    head = [] if encoder.bos is None else [encoder.bos]
    packed = array("I")  # grows in place: parts that are joined in the end would be held twice
    for ids in token_ids(documents, encoder.encode):
        packed.extend(head)
        for part in ids:
            packed.extend(part)
            if limit and len(packed) >= limit:
                break
        packed.append(encoder.eos)
        if limit and len(packed) >= limit:
            break
    tokens = np.frombuffer(packed, np.uint32) if packed else np.empty(0, np.uint32)
    return tokens[:limit] if limit else tokens
