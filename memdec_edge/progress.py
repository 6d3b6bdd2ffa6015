"""Progress of long work: a bar on stderr with rate and time left, nothing where stderr is no terminal.

Of several processes that share the work only the first speaks to the user.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


def is_first_process() -> bool:
    """Whether this process is alone, or the first of those that `accelerate launch` or `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress(label: str, total: int, unit: str = "tokens") -> Iterator[Advance]:
    """Show a bar for `total` units; the value is called with the units done since its last call."""
    if not sys.stderr.isatty() or not is_first_process():
        yield lambda done: None
        return
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
        task = bar.add_task(label, total=total, rate="")

        def advance(done: int) -> None:
            bar.advance(task, done)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:,.0f} {unit}/s" if speed else "")

        yield advance
