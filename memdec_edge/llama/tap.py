"""A tap on llama.cpp's computation: copies of one tensor of the graph, a row for each token of a batch.

    tap = Tap("ffn_norm-29", width=576, n_rows=256)
    context = Context(model, options, n_ctx, tap=tap)
    context.decode([(0, tokens)])
    rows = tap.take()                                    float32 [tokens, width]

llama.cpp's API gives the last hidden states (`embeddings`) and no others, and computes the head's logits all the same.
Its scheduler's callback (`cb_eval`, made for llama-imatrix) gives any tensor by name, and may end the pass there:
without the head a pass is a fifth to a quarter cheaper. The callback is native/tap.c. Knows nothing of contexts and of
what the rows are for.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp._ctypes_extensions import load_shared_library

from memdec_edge.errors import LibraryError

Rows = npt.NDArray[np.float32]
FUNCTIONS = ("ggml_get_name", "ggml_nbytes", "ggml_backend_tensor_get")


class _State(ctypes.Structure):
    """md_tap of native/tap.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        *((function, ctypes.c_void_p) for function in FUNCTIONS),
        ("rows", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("used", ctypes.c_size_t),
        ("last", ctypes.c_int32),
    )


@cache
def _functions() -> dict[str, int | None]:
    """Return addresses in ggml's own library, which llama-cpp-python loads but does not declare."""
    library = load_shared_library("ggml-base", Path(llama_cpp.__file__).parent / "lib")
    return {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in FUNCTIONS}


class Tap:
    """Copies the float32 tensor `name` (llama.cpp's own name, with its layer), [n_rows at most, width], of each batch.

    `last`: the pass ends at that tensor, and its logits mean nothing. `data` and `callback` are what llama.cpp wants.
    Raises LibraryError without the C extension, or where llama-cpp-python lacks a function.
    """

    def __init__(self, name: str, width: int, n_rows: int) -> None:
        try:
            from memdec_edge import _native

            functions = _functions()
        except (ImportError, OSError, AttributeError) as error:
            raise LibraryError(llama_cpp.__version__, f"its computation cannot be tapped ({error})") from error
        self.name = name
        self._buffer = np.empty((n_rows, width), np.float32)
        self._state = _State(name.encode(), rows=self._buffer.ctypes.data, size=self._buffer.nbytes, **functions)
        self.data = ctypes.addressof(self._state)
        self.callback: Any = ctypes.cast(_native.TAP_CALLBACK, llama_cpp.llama_cpp.ggml_backend_sched_eval_callback)

    @property
    def last(self) -> bool:
        return bool(self._state.last)

    @last.setter
    def last(self, value: bool) -> None:
        self._state.last = value

    def take(self) -> Rows:
        """Return the rows of the batch since the last call, a view until the next batch.

        Empty where the graph has no such tensor.
        """
        n_bytes, self._state.used = self._state.used, 0
        assert n_bytes <= self._buffer.nbytes, f"{self.name}: {n_bytes} bytes in one batch"
        return self._buffer[: n_bytes // self._buffer[0].nbytes]
