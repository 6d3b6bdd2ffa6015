"""What commands print: JSON on stdout, notes on stderr, untrusted text without control characters.

Knows nothing of what is printed.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

CONTROL = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories of characters that act on a terminal, or are none


def print_json(value: Any) -> None:
    """Print `value` as one line; paths become strings, NaN and infinity, which JSON lacks, null."""
    print(json.dumps(_jsonable(value)))


def note(line: str) -> None:
    """Print one line on stderr. Work goes on where stderr cannot be written: results go to stdout."""
    with suppress(OSError):
        print(printable(line), file=sys.stderr)


def warn(warnings: Iterable[str]) -> None:
    """Print each warning as one line on stderr."""
    for warning in warnings:
        note(f"Warning: {warning}")


def printable(text: str) -> str:
    """Return `text` with control characters escaped as Python spells them, so that a file cannot steer a terminal."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in CONTROL else character
        for character in text
    )


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
