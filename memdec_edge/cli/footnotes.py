"""Footnotes of a text that streams: where its passages stand in indexed documents. Knows nothing of commands."""

from textwrap import shorten
from typing import TYPE_CHECKING

from memdec_edge.cli.output import printable

if TYPE_CHECKING:
    from memdec_edge.api import LanguageModel
    from memdec_edge.engine import Source

QUOTED = 240  # characters of a passage that a footnote shows


class Footnotes:
    """The passages of one text, numbered from 1."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self._inside = False

    def mark(self, source: "Source | None") -> str:
        """What to print before the next chunk, whose token has `source`: the number of a passage that ends there."""
        from memdec_edge.engine.lookup import passages

        before = len(self.sources)
        self.sources = passages(self.sources, source)
        ended = self._inside and (source is None or len(self.sources) > before)
        self._inside = source is not None
        return f"[{before}]" if ended else ""

    def lines(self, model: "LanguageModel") -> list[str]:
        """The footnotes, one a line."""
        found = []
        for number, source in enumerate(self.sources, 1):
            text = shorten(model.quote(source), QUOTED, placeholder=" [...]")
            found.append(f"[{number}] {source.document}, tokens {source.start + 1} to {source.end}: {text}")
        return [printable(line) for line in found or ["No passage of 8 tokens or more stands in an indexed document."]]
