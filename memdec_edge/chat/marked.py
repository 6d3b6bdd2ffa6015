"""Text of which each character knows its origin: the template, a message's content, or neither.

Chat templates cut, strip, replace and join texts. Marked is a str that passes the origins on through the methods of
str that templates call. A method that it does not know, such as title(), gives a plain str, and that counts as DATA: a
name of a control token in it is plain text. So a lost mark never lets a user write control tokens.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, SupportsIndex

TEMPLATE, DATA = "\0", "\1"  # origins; the content of message i has chr(FIRST + i)
FIRST = 2


class Marked(str):
    """`text`, and the origin of each of its characters: one for all, or a string of the same length."""

    __slots__ = ("_origins",)
    _origins: str

    def __new__(cls, text: object = "", origins: str = DATA) -> "Marked":
        """An origin of one character counts for the whole text."""
        made = super().__new__(cls, text)
        made._origins = origins if len(origins) == len(made) else origins * len(made)
        return made

    def spans(self) -> Iterator[tuple[str, str]]:
        """(origin, text) of each run of characters of one origin, in order."""
        start = 0
        for origin, run in groupby(self._origins):
            end = start + len(list(run))
            yield origin, str.__getitem__(self, slice(start, end))
            start = end

    def __str__(self) -> str:
        return self  # Jinja calls str() on what it prints

    def __getitem__(self, key: SupportsIndex | slice) -> "Marked":
        return Marked(super().__getitem__(key), self._origins[key])

    def __iter__(self) -> Iterator[str]:
        return map(Marked, str.__iter__(self), self._origins)

    def __add__(self, other: str) -> Any:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return Marked(super().__add__(other), self._origins + origins(other))

    def __radd__(self, other: str) -> Any:
        if not isinstance(other, str):
            return NotImplemented
        return Marked(str.__add__(other, self), origins(other) + self._origins)

    def __mul__(self, count: SupportsIndex) -> "Marked":
        return Marked(super().__mul__(count), self._origins * count.__index__())

    __rmul__ = __mul__

    def join(self, parts: Iterable[str]) -> "Marked":
        return joined(parts, self)

    def strip(self, chars: str | None = None) -> "Marked":
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> "Marked":
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None) -> "Marked":
        return self[: len(super().rstrip(chars))]

    def removeprefix(self, prefix: str) -> "Marked":
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> "Marked":
        return self[: -len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(super().rsplit(sep, maxsplit), sep)

    def partition(self, sep: str) -> Any:
        return tuple(self._pieces(super().partition(sep), ""))

    def rpartition(self, sep: str) -> Any:
        return tuple(self._pieces(super().rpartition(sep), ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole = self._pieces(super().splitlines(keepends=True), "")
        return whole if keepends else [line[: len(str.splitlines(line)[0])] for line in whole]

    def _pieces(self, parts: Iterable[str], sep: str | None) -> list[str]:
        """`parts` of this text, in order, with their origins; between them lies `sep`, or blanks where it is None."""
        found: list[str] = []
        at = 0
        for part in parts:
            if sep is None:
                at = self.index(part, at)
            found.append(self[at : at + len(part)])
            at += len(part) + len(sep or "")
        return found

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> "Marked":  # type: ignore[override, unused-ignore]
        if not old:
            return Marked(super().replace(old, new, count))  # between all characters; no template does that
        return joined(self.split(old, count), new)

    def lower(self) -> "Marked":
        return self._respelled(super().lower())

    def upper(self) -> "Marked":
        return self._respelled(super().upper())

    def capitalize(self) -> "Marked":
        return self._respelled(super().capitalize())

    def _respelled(self, text: str) -> "Marked":
        return Marked(text, self._origins if len(text) == len(self) else DATA)


def origins(text: str) -> str:
    """The origin of each character."""
    return text._origins if isinstance(text, Marked) else DATA * len(text)


def joined(parts: Iterable[object], between: str = "") -> Marked:
    """str(part) of each, with `between` between them."""
    texts = [part if isinstance(part, str) else str(part) for part in parts]
    return Marked(str.join(between, texts), origins(between).join(map(origins, texts)))
