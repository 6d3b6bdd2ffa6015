"""What the operating system does to a command: streams that are closed or break, and signals that stop it.

Knows nothing of commands.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

STOPPED = 128  # what a shell adds to the number of the signal that ended a program


def open_missing_streams() -> None:
    """Let the null device stand in for each standard stream that the caller closed.

    Otherwise the next file that any library opens takes the free descriptor, and messages end up in it.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null == descriptor:
                os.set_inheritable(null, True)
            else:
                os.dup2(null, descriptor)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - it stays open


def show_every_character() -> None:
    """Let stdout replace what its encoding lacks: a terminal that cannot show a character is no reason to stop."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def abandon_broken_streams() -> None:
    """Point each output stream that cannot be written at the null device.

    Python flushes both once more when it ends, and would complain a second time.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


class Stop:
    """The signal that stopped the command; Ctrl-C until another one arrives."""

    def __init__(self) -> None:
        self.signal: int = signal.SIGINT

    @property
    def exit_code(self) -> int:
        """What a shell reports of a program that this signal ended."""
        return STOPPED + self.signal


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the command is to end, where Ctrl-C may stop a part of its work."""


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Let SIGTERM and SIGHUP interrupt the command as Ctrl-C does: it keeps what is finished, and cleans up.

    A signal that the caller ignores or handles stays as it is: `nohup` works.
    """
    stop = Stop()

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        raise Terminated

    names = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield stop
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
