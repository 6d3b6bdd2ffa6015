"""Progress of long work, on stderr: a bar with rate and time left on a terminal, elsewhere a line a minute.

Where a plan says what follows, the time left of all of it stands beside. Of several processes that share the work only
the first one reports. Knows nothing of the work.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

Advance = Callable[[int], None]

INTERVAL = 60.0  # seconds between two lines
SCHEDULE = "MEMDEC_SCHEDULE"  # in the environment, so that processes that this one starts know it too


def is_first_process() -> bool:
    """Return whether this process is alone, or the first of those that `accelerate launch` or `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def scheduled(works: Sequence[tuple[str, float]]) -> Iterator[None]:
    """Meanwhile progress() says how long all of `works` will take: the label of each and its seconds, in their order.

    A work that has no progress of its own has any other label.
    """
    before = os.environ.get(SCHEDULE)
    os.environ[SCHEDULE] = json.dumps(works)
    try:
        yield
    finally:
        os.environ.pop(SCHEDULE)
        if before is not None:
            os.environ[SCHEDULE] = before


def _seconds_after(label: str) -> float | None:
    """The seconds of what follows a work; None where no plan says it."""
    works = json.loads(os.environ.get(SCHEDULE, "[]"))
    labels = [name for name, _ in works]
    return sum(seconds for _, seconds in works[labels.index(label) + 1 :]) if label in labels else None


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
        self.after = _seconds_after(label)

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last < INTERVAL:
            return
        self.last = now
        rate = (self.done - self.before) / (now - self.start)
        seconds = (self.total - self.done) / rate if rate else None
        left = "unknown time" if seconds is None else _time(seconds)
        whole = "" if seconds is None or self.after is None else f", {_time(seconds + self.after)} in all"
        print(
            f"{self.label}: {self.done:,} of {self.total:,} {self.unit} ({self.done / self.total:.0%}), "
            f"{rate:,.3g} {self.unit}/s, {left} left{whole}",
            file=sys.stderr,
            flush=True,
        )


def _time(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))


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
        TextColumn("{task.fields[whole]}"),
    )
    after = _seconds_after(label)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, completed=done, rate="", whole="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].speed
            left = bar.tasks[0].time_remaining
            whole = "" if left is None or after is None else f"({_time(left + after)} in all)"
            bar.update(task, rate=f"{speed:,.0f} {unit}/s" if speed else "", whole=whole)

        yield advance
