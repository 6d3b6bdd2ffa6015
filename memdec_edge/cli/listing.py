"""The command list: memories, indexes, caches and checkpoints of this machine. Knows nothing of how they are found."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from memdec_edge.cli.flags import spread
from memdec_edge.cli.output import note, print_json, printable, warn
from memdec_edge.cli.parameters import Json

COLUMNS = ("kind", "size", "domain", "base", "file")


@spread
def list_(
    *,
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="More folders to look through, or files.")
    ] = None,
    json_: Json = False,
) -> None:
    """List memories, indexes, caches and checkpoints.

    Sizes, domains and bases come with them. The results of learn and demo are looked through, and each FOLDER. The
    command rm removes what is listed.
    """
    from memdec_edge.workflow.inventory import take_inventory

    found = take_inventory(folders or ())
    warn(found.warnings)
    rows = [
        (each.kind, f"{each.n_bytes / 1e6:,.1f} MB", each.domain, each.base, str(each.path)) for each in found.items
    ]
    if rows:
        _print_table([COLUMNS, *rows])
    else:
        note("nothing is here yet; memdec-edge index makes an index in seconds")
    if json_:
        items = [{name: value for name, value in asdict(each).items() if name != "tokenizer"} for each in found.items]
        print_json({"items": items, "bytes": sum(each.n_bytes for each in found.items)})


def _print_table(rows: list[tuple[str, ...]]) -> None:
    shown = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        kind, size, *rest = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        print("  ".join((kind, size.strip().rjust(widths[1]), *rest)).rstrip())
