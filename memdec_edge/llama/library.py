"""llama.cpp as a library: it is started once, its log gives errors their reasons, and what it makes is freed in time.

Knows nothing of models.
"""

import contextlib
import ctypes
import sys
import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

import llama_cpp

TELLING = ("error loading model", "failed to quantize", "invalid")  # in lines of llama.cpp's log that give a reason
EMPTY = "failed to load model from"  # in lines that give none: gguf's own, which come first, do
FUNCTION_NAMES = (
    "error loading model: ",
    "failed to quantize: ",
    "llama_init_from_model: ",
    "gguf_init_from_reader: ",
)
LOG_ERROR = 4  # enum ggml_log_level; llama-cpp-python's own table is off by one


class Owned:
    """Something that llama.cpp made, freed with the last reference to this object.

    A call keeps a reference as long as it runs, so that close() in another thread takes nothing from under it. `needs`
    are kept as long.
    """

    def __init__(self, pointer: Any, free: Callable[[Any], object], *needs: object) -> None:
        self.pointer, self._free, self._needs = pointer, free, needs

    def __del__(self) -> None:
        self._free(self.pointer)


class _Log(threading.local):
    """The last errors that llama.cpp logged in one thread: two engines in two threads have a reason each."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=40)


_log = _Log()
_verbose = False


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def _on_log(level: int, text: bytes, user_data: Any) -> None:
    line = text.decode("utf-8", "replace")
    if _verbose and sys.stderr:
        with contextlib.suppress(OSError, ValueError):  # stderr was closed: a log is no reason to stop
            sys.stderr.write(line)
    if level == LOG_ERROR and line.strip():
        _log.lines.append(line.strip())


@cache
def start() -> None:
    """Take over llama.cpp's log and start its backends, before anything else is asked of it."""
    llama_cpp.llama_log_set(_on_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def set_verbose(verbose: bool) -> None:
    """Show llama.cpp's log on stderr, or keep it silent (the default)."""
    global _verbose
    _verbose = verbose


def has_gpu() -> bool:
    """Return whether llama-cpp-python was built for a GPU and the machine has one."""
    start()
    return bool(llama_cpp.llama_supports_gpu_offload())


def forget_reasons() -> None:
    """Empty this thread's log, before a call whose failure reason() is to explain."""
    _log.lines.clear()


def reason(fallback: str) -> str:
    """Return the most telling line that llama.cpp logged in this thread, without its function names."""
    lines = list(_log.lines)
    telling = [line for line in lines if any(mark in line for mark in TELLING) and EMPTY not in line] or lines
    if not telling:
        return fallback
    line = telling[0]
    for name in FUNCTION_NAMES:
        line = line.split(name)[-1]
    return " ".join(line.split())
