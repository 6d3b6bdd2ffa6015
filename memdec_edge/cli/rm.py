"""The command rm: remove what memdec-edge has made. Knows nothing of how it is known, and of how it is removed."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from memdec_edge.cli.flags import spread
from memdec_edge.cli.lines import Lines
from memdec_edge.cli.output import note, printable
from memdec_edge.errors import OptionError


@spread
def rm(
    *,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Memory, index, cache or checkpoint, or a result of learn or demo."),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove memories, indexes, caches and checkpoints.

    Of a result of learn or demo the whole folder goes. What memdec-edge did not make stays. So does what a running
    training is at work in.
    """
    from memdec_edge.workflow.inventory import found, remove

    items = [found(path) for path in paths]
    if not yes and not sys.stdin.isatty():
        raise OptionError("yes", "not given", "no terminal is here to ask; give it to remove without a question")
    for item in items:
        shown = f"{item.kind} {printable(str(item.path))}, {item.n_bytes / 1e6:,.1f} MB"
        if not yes and not Lines().agrees(f"Remove {shown}?"):
            note(f"kept {item.path}")
            continue
        remove(item)
        print(f"removed {shown}")
