"""What commands print: JSON on stdout; notes and warnings on stderr come from memdec_edge/notes.py.

Knows nothing of what is printed.
"""

import json
import re
from pathlib import Path
from typing import Any

from memdec_edge.notes import note, printable, warn

__all__ = ["note", "print_json", "printable", "warn"]


def print_json(value: Any) -> None:
    """Print json_line() of `value`."""
    print(json_line(value))


def json_line(value: Any) -> str:
    """Return `value` as a line of JSON; paths become strings, NaN and infinity, which JSON lacks, null."""
    return json.dumps(_jsonable(value))


def shown(text: str) -> str:
    """Return `text` as printable(), its line breaks and tabs kept: what a model writes steers no terminal."""
    return re.sub(r"[^\n\t]+", lambda found: printable(found[0]), text)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
