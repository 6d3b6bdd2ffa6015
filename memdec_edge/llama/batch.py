"""A llama_batch over NumPy arrays: the tokens that llama.cpp decodes at a time. Knows nothing of contexts."""

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt


class Batch:
    """Room for `size` tokens, each of one of `n_seq` slots.

    end: tokens that are in it. wanted: int8 [size], 1 for each token that gets logits.
    """

    def __init__(self, size: int, n_seq: int) -> None:
        self.end = 0
        self._ids, self._positions = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self.wanted, self._one = np.zeros(size, np.int8), np.ones(size, np.int32)
        self._slot_ids = np.arange(n_seq, dtype=np.int32)
        self._slots = np.full(size, self._slot_ids.ctypes.data, np.uintp)
        self._slot_addresses = [self._slot_ids.ctypes.data + 4 * slot for slot in range(n_seq)]
        types = dict(llama_cpp.llama_batch._fields_)

        def pointer(array: npt.NDArray[Any], field: str) -> Any:
            return ctypes.cast(array.ctypes.data, types[field])

        self._struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=pointer(self._ids, "token"),
            pos=pointer(self._positions, "pos"),
            n_seq_id=pointer(self._one, "n_seq_id"),
            seq_id=pointer(self._slots, "seq_id"),
            logits=pointer(self.wanted, "logits"),
        )

    def add(self, slot: int, position: int, tokens: Sequence[int], count: int) -> None:
        """Add tokens of a slot from a position on, with logits after the last `count` of them."""
        start, end = self.end, self.end + len(tokens)
        self._ids[start:end] = tokens
        self._positions[start:end] = range(position, position + len(tokens))
        self._slots[start:end] = self._slot_addresses[slot]
        self.wanted[start:end] = 0
        self.wanted[max(end - count, start) : end] = 1
        self.end = end

    @property
    def struct(self) -> Any:
        """What llama_decode takes."""
        self._struct.n_tokens = self.end
        return self._struct
