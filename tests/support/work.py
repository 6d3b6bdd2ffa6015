"""What tests let a child process do."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from memdec_edge.errors import Cancelled


def answer(*arguments: Any) -> tuple[int, tuple[Any, ...]]:
    """The process that ran this, and what it was given; not without noise on stdout."""
    print("noise of a library")
    os.write(1, b"noise of a C library\n")
    return os.getpid(), arguments


def fail(error: BaseException) -> None:
    raise error


def environment(name: str) -> str | None:
    return os.environ.get(name)


def die(signal_number: int) -> None:
    os.kill(os.getpid(), signal_number)


def leave(code: int) -> None:
    os._exit(code)


def work(folder: Path, advice: str) -> None:
    """Work until the interrupt comes, then note it and how many more come while the work is saved."""
    interrupts = 0
    try:
        try:
            (folder / "pid").write_text(str(os.getpid()))
            time.sleep(600)
        except KeyboardInterrupt:
            interrupts += 1
            time.sleep(0.5)
    except KeyboardInterrupt:
        interrupts += 1
    print("saved", file=sys.stderr)
    (folder / "interrupts").write_text(str(interrupts))
    raise Cancelled(advice)


def stubborn(folder: Path) -> None:
    """Work that no interrupt ends."""
    (folder / "pid").write_text(str(os.getpid()))
    while True:
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            (folder / "interrupts").write_text("1")


class StrangeError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def strange() -> None:
    raise StrangeError("one", "two")
