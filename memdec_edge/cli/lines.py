"""Messages from a terminal or a pipe: lines with editing and history, and several lines between two triple quotes.

Nothing that is typed is written to a disk. Knows nothing of chats.
"""

import sys
from contextlib import suppress
from typing import NamedTuple

from memdec_edge.cli.output import note

QUOTES = '"""'


class Typed(NamedTuple):
    """What was typed. quoted: between triple quotes, so that it is a message whatever it begins with."""

    text: str
    quoted: bool


class Lines:
    """Reads messages. interactive: whether a person types them."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self._edits = self.interactive and sys.stdout.isatty()
        if self._edits:
            with suppress(ImportError):  # Windows edits lines by itself
                import readline  # noqa: F401 - input() uses it then

    def read(self) -> Typed | None:
        """The next message; None at the end. Ctrl-C drops what was typed of one."""
        while True:
            try:
                line = self._line(">>> ")
                if line is None:
                    return None
                if line.startswith(QUOTES):
                    return Typed(self._more(line.removeprefix(QUOTES)), quoted=True)
                return Typed(line, quoted=False)
            except KeyboardInterrupt as error:
                if not self.interactive or type(error) is not KeyboardInterrupt:
                    raise
                print(file=sys.stderr)
                note("type /bye to leave")

    def _more(self, line: str) -> str:
        lines: list[str] = []
        while not line.rstrip().endswith(QUOTES):
            lines.append(line)
            following = self._line("... ")
            if following is None:
                note(f"the input ended without {QUOTES}")
                break
            line = following
        else:
            lines.append(line.rstrip().removesuffix(QUOTES))
        return "\n".join(lines).strip("\n")

    def agrees(self, question: str) -> bool:
        """Whether a person answers with yes."""
        return (self._line(f"{question} [y/N] ") or "").strip().lower() in ("y", "yes")

    def _line(self, prompt: str) -> str | None:
        if self._edits:
            try:
                return input(prompt)
            except EOFError:
                print()
                return None
        if self.interactive:
            print(prompt, end="", file=sys.stderr, flush=True)
        data = sys.stdin.buffer.readline()
        if not data:
            return None
        from memdec_edge.documents import decode_text

        return decode_text(data, "stdin").rstrip("\r\n")
