"""A command in a terminal of its own, as a person has it: what it shows, and keys to press."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.command import COMMAND

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
# The terminal must be the one that controls the process, else Ctrl-C is a letter.
TAKE = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """What was shown so far is `shown`, with sequences that act on the terminal."""

    def __init__(self, process: "subprocess.Popen[bytes]", master: int) -> None:
        self.process, self._master = process, master
        self.shown = ""
        self._seen = 0  # of `text`, by wait_for()

    @property
    def text(self) -> str:
        """The same without those sequences."""
        return SEQUENCES.sub("", self.shown)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read until `text` is shown after what was waited for before."""
        end = time.monotonic() + seconds
        while (at := self.text.find(text, self._seen)) < 0:
            if time.monotonic() > end or not self._read(end):
                raise AssertionError(f"{text!r} was not shown:\n{self.text}")
        self._seen = at + len(text)

    def interrupt(self, text: str) -> None:
        """Press Ctrl-C until `text` is shown: readline hears of one that comes while it draws at the next key."""
        for _ in range(20):
            self.press(CTRL_C)
            try:
                return self.wait_for(text, 3)
            except AssertionError:
                continue
        raise AssertionError(f"{text!r} was not shown:\n{self.text}")

    def wait_for_more(self, seconds: float = 60) -> None:
        """Read until anything is shown after what was waited for before."""
        end = time.monotonic() + seconds
        while len(self.text) <= self._seen:
            assert self._read(end), f"nothing was shown after:\n{self.text}"

    def ends(self, seconds: float = 60) -> int:
        """Read to the end; the exit code."""
        end = time.monotonic() + seconds
        while self._read(end):
            pass
        return self.process.wait(timeout=seconds)

    def _read(self, end: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # the other end is closed
            data = b""
        self.shown += data.decode("utf-8", "replace")
        return bool(data)


@contextmanager
def terminal(*arguments: object, **environment: str) -> Iterator[Terminal]:
    """Run `memdec-edge ARGUMENTS` in a terminal of 80 columns."""
    master, slave = pty.openpty()
    words = [sys.executable, "-c", TAKE, *COMMAND, *map(str, arguments)]
    usual = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLORTERM", "FORCE_COLOR")}
    process = subprocess.Popen(
        words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env={**usual, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", **environment},
    )  # fmt: skip
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        os.close(master)
