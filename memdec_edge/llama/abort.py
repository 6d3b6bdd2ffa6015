"""Stopping a long llama_decode: Ctrl-C and cancellation from another thread.

Python's own signal handler only runs between bytecodes, so not inside a C call of seconds. llama.cpp asks an abort
callback before each graph node; ours reads a flag, and from time to time lets Python look at its signals.
Knows nothing of models.
"""

import ctypes

try:
    from memdec_edge import _native

    _callback = _native.ABORT_CALLBACK
except ImportError:
    _callback = 0  # llama.cpp then asks nobody: Ctrl-C and cancel() work between decodes only


class AbortFlag:
    """One flag, which several contexts may share: `callback` and `data` are what llama.cpp wants."""

    def __init__(self) -> None:
        self._value = ctypes.c_int32(0)
        self.callback = _callback
        self.data = ctypes.addressof(self._value)

    def set(self) -> None:
        """Ask for an abort; callable from any thread."""
        self._value.value = 1

    def take(self) -> bool:
        """Whether an abort was asked for; the flag is down afterwards."""
        raised, self._value.value = self._value.value != 0, 0
        return raised
