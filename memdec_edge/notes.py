"""What is said on stderr beside results: one line at a time, untrusted text without control characters.

Knows nothing of what is said.
"""

import sys
import unicodedata
from collections.abc import Iterable
from contextlib import suppress

CONTROL = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories of characters that act on a terminal, or are none


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
