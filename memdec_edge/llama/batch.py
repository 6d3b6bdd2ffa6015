"""A llama_batch over NumPy arrays: token ids, the position and slot of each, and whether it gets logits.

Knows nothing of contexts and of what their slots hold.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt


class Batch:
    """Room for `size` tokens, each of one of `n_seq` slots. Nothing is checked: see Context.

    struct: what llama_decode() takes. wanted: int8 [size], 1 for each token that gets logits.
    """

    def __init__(self, size: int, n_seq: int) -> None:
        self._ids, self._positions = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self.wanted, self._one = np.zeros(size, np.int8), np.ones(size, np.int32)
        self._slot_ids = np.arange(n_seq, dtype=np.int32)
        self._slots = np.full(size, self._slot_ids.ctypes.data, np.uintp)
        self._slot_addresses = [self._slot_ids.ctypes.data + 4 * slot for slot in range(n_seq)]
        types = dict(llama_cpp.llama_batch._fields_)

        def pointer(array: npt.NDArray[Any], field: str) -> Any:
            return ctypes.cast(array.ctypes.data, types[field])

        self.struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=pointer(self._ids, "token"),
            pos=pointer(self._positions, "pos"),
            n_seq_id=pointer(self._one, "n_seq_id"),
            seq_id=pointer(self._slots, "seq_id"),
            logits=pointer(self.wanted, "logits"),
        )

    def put(self, start: int, slot: int, tokens: Sequence[int], position: int, wanted: int) -> int:
        """Put tokens of a slot at `start`, and end the batch after them; return where that is.

        position: of the first one in its slot. wanted: how many of the last ones get logits.
        """
        end = start + len(tokens)
        self._ids[start:end] = tokens
        self._positions[start:end] = range(position, position + len(tokens))
        self._slots[start:end] = self._slot_addresses[slot]
        self.wanted[start:end] = 0
        self.wanted[max(end - wanted, start) : end] = 1
        self.struct.n_tokens = end
        return end
