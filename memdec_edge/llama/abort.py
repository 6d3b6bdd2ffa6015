"""Stopping a long llama_decode: signals such as Ctrl-C, and cancellation from another thread.

Python runs signal handlers only between bytecodes, so not inside a C call of seconds. llama.cpp asks an abort callback
before each graph node. Ours (native/abort.c) reads a flag, and twenty times a second lets Python run its handlers.
Knows nothing of models.
"""

import ctypes
import threading

from memdec_edge.errors import Cancelled

try:
    from memdec_edge import _native

    _callback = _native.ABORT_CALLBACK
except ImportError:
    _callback = 0  # llama.cpp then asks nothing: signals and cancel() work between decodes only

ASKED, RAISED = 1, 2  # MD_ABORT_* of native/abort.h


class _State(ctypes.Structure):
    """md_abort of native/abort.h."""

    _fields_ = (("flag", ctypes.c_int32), ("error", ctypes.c_void_p))


class AbortFlag:
    """One flag, which several contexts may share: `callback` and `data` are what llama.cpp wants."""

    def __init__(self) -> None:
        self._state = _State()
        self.callback = _callback
        self.data = ctypes.addressof(self._state)

    def set(self) -> None:
        """Ask for an abort; callable from any thread."""
        self._state.flag = ASKED

    def take(self) -> BaseException | None:
        """Return why to abort, None where nothing asked for it; the flag is down afterwards.

        That is what a signal handler raised (KeyboardInterrupt, a timeout, SystemExit), else Cancelled. Handlers run
        in the main thread, so only that one gets their exception; to others the flag stays up as Cancelled.
        """
        flag = self._state.flag
        if flag == RAISED:
            if threading.current_thread() is not threading.main_thread():
                return Cancelled()
            address, self._state.error = self._state.error, None
            error: BaseException = ctypes.cast(address, ctypes.py_object).value
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(error))  # the reference that the callback left us
            self._state.flag = 0
            return error
        self._state.flag = 0
        return Cancelled() if flag else None
