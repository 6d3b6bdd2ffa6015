"""How answers are shown: as they come, shaded by the memory's share, or two in columns. Knows nothing of chats."""

import sys
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.style import Style
from rich.table import Table
from rich.text import Text

from memdec_edge.api import LanguageModel
from memdec_edge.api.results import Chunk
from memdec_edge.cli.footnotes import Footnotes
from memdec_edge.cli.output import note, shown

# A shade for each fifth of the share: colours behind the text where a terminal has many, else colours of the text.
SHADES = (None, "color(17)", "color(24)", "color(29)", "color(64)")  # of the 256: dark blue, blue, teal, green
COLOURS = (None, "cyan", "blue", "green", "magenta")
HIGH = 0.6  # a share that the summary counts


class Answers:
    """Prints chunks. Without colours (NO_COLOR, a pipe, a dumb terminal) a summary stands for the shades.

    quoted: the model from whose indexes footnotes quote; None: no footnotes.
    """

    def __init__(self, show_memory: bool, quoted: LanguageModel | None = None) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.show_memory, self.quoted = show_memory, quoted
        self._depth = None if self.console.no_color else self.console.color_system
        self._styles = [self._style(level) for level in range(len(SHADES))]
        self._reasons = False  # whether reasoning stands on the line
        self._open = False  # whether a line is unfinished

    def _style(self, level: int) -> Style:
        if self._depth in ("truecolor", "256"):
            return Style(color="white", bgcolor=SHADES[level]) if SHADES[level] else Style()
        return Style(color=COLOURS[level]) if COLOURS[level] and self._depth else Style()

    def legend(self) -> None:
        """Say what the shades mean."""
        if not self.show_memory:
            return
        if not self._depth:
            note("no colours here: after each answer stands the memory's mean share of the tokens' probability")
            return
        self.console.print("the memory's share of a token's probability: ", end="")
        for level, style in enumerate(self._styles):
            self.console.print(Text(f" {20 * level}-{20 * level + 20} % ", style), end="")
        self.console.print()

    def show(self, chunks: Iterator[Chunk]) -> Chunk:
        """Print an answer as it comes; return its last chunk."""
        shares: list[float] = []
        notes = Footnotes()
        chunk: Chunk | None = None
        for chunk in chunks:
            mark = notes.mark(chunk.source)
            if self.quoted and self._open:
                print(mark, end="")
            self._print(chunk)
            shares += [] if chunk.share is None else [chunk.share]
        assert chunk is not None  # a stream always ends with a chunk
        self.stop()
        self._print_notes(notes)
        if self.show_memory and shares and len(chunk.weights) > 1:
            mean, high = sum(shares) / len(shares), sum(share >= HIGH for share in shares)
            note(f"memory's share: mean {mean:.0%}, {high} of {len(shares)} tokens at {HIGH:.0%} or more")
        return chunk

    def _print(self, chunk: Chunk) -> None:
        if chunk.reasoning and self.console.is_terminal:
            self.console.print(Text(shown(chunk.reasoning), Style(dim=True, italic=True)), end="")
            self._reasons = self._open = True
        if chunk.text:
            if self._reasons:
                self.console.print("\n")
                self._reasons = False
            if self.show_memory and chunk.share is not None:
                style = self._styles[min(int(chunk.share * len(SHADES)), len(SHADES) - 1)]
                self.console.print(Text(shown(chunk.text), style), end="")
            else:
                print(shown(chunk.text), end="")
            self._open = True
        sys.stdout.flush()

    def _print_notes(self, notes: Footnotes) -> None:
        if self.quoted:
            print(*notes.lines(self.quoted), sep="\n", flush=True)

    def stop(self) -> None:
        """End the line of an answer."""
        if self._open:
            print(flush=True)
        self._open = self._reasons = False

    def show_both(self, both: Iterator[tuple[int, Chunk]]) -> Chunk:
        """Print the answers of base (0) and mixture (1) in two columns; return the last chunk of the second.

        What came before an interrupt stays on the screen.
        """
        texts = [Text(), Text()]
        notes = Footnotes()
        last: Chunk | None = None
        try:
            with Live(console=self.console, transient=True, auto_refresh=False) as live:
                for number, chunk in both:
                    if number:
                        texts[1].append(notes.mark(chunk.source) if self.quoted else "")
                        last = chunk
                    level = min(int((chunk.share or 0.0) * len(SHADES)), len(SHADES) - 1)
                    style = self._styles[level] if self.show_memory and number else Style()
                    texts[number].append(shown(chunk.text), style)
                    if self.console.is_terminal:
                        live.update(_columns(texts), refresh=True)
        finally:
            if any(texts):
                self.console.print(_columns(texts), soft_wrap=False)
        self._print_notes(notes)
        assert last is not None
        return last


def _columns(texts: list[Text]) -> Table:
    table = Table("base alone", "with the memory", expand=True, box=None, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.ratio = 1
    table.add_row(*texts)
    return table
