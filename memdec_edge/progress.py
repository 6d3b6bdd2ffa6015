"""Progress of long work, on stderr: a bar with rate and time left on a terminal, elsewhere a line a minute.

Of several processes that share the work only the first one reports. Knows nothing of the work.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

Advance = Callable[[int], None]

INTERVAL = 60.0  # seconds between two lines


def is_first_process() -> bool:
    """Return whether this process is alone, or the first of those that `accelerate launch` or `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress(label: str, total: int, unit: str = "tokens", done: int = 0) -> Iterator[Advance]:
    """Report on `total` units of work, `done` of them by an earlier run.

    The value is the callback `advance`; the work calls it with the number of units finished since the last call.
    """
    if not sys.stderr or not is_first_process():
        yield lambda count: None
    elif sys.stderr.isatty():
        with _bar(label, total, unit, done) as advance:
            yield advance
    else:
        yield _Lines(label, total, unit, done)


class _Lines:
    """Lines for a log file: how much is done, how fast, how much longer."""

    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.before = self.done = done
        self.start = self.last = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last < INTERVAL:
            return
        self.last = now
        rate = (self.done - self.before) / (now - self.start)
        left = timedelta(seconds=round((self.total - self.done) / rate)) if rate else "unknown time"
        print(
            f"{self.label}: {self.done:,} of {self.total:,} {self.unit} ({self.done / self.total:.0%}), "
            f"{rate:,.3g} {self.unit}/s, {left} left",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def _bar(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, completed=done, rate="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:,.0f} {unit}/s" if speed else "")

        yield advance
