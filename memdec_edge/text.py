"""Bytes of tokens become text to show: whole UTF-8 characters, cut at the first stop string.

A token may end inside a character or inside a stop string. TextStream holds back what may still become either one.
Knows nothing of models, tokens or terminals.
"""

import codecs


class TextStream:
    """Incremental UTF-8 with stop strings.

    The texts that `push` and `flush` return join to one text, however the bytes were cut into pieces. It is all bytes
    decoded at once (malformed ones as U+FFFD), up to where the earliest stop string begins. Of two that begin at one
    place the shorter counts. `push` returns text at once that cannot belong to a stop string.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        """stop: strings of at least one character, which end the text and are no part of it."""
        self._stops = sorted(stop, key=len)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded and not shown: it may be the beginning of a stop string
        self.stop: str | None = None  # the stop string that ended the text

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text; later pieces are ignored."""
        return self.stop is not None

    def push(self, piece: bytes) -> str:
        """Take the bytes of one token; return the text to show now, often ""."""
        return self._advance(piece, final=False)

    def flush(self) -> str:
        """End the bytes; return what was held back, with an unfinished character as U+FFFD."""
        return self._advance(b"", final=True)

    def _advance(self, piece: bytes, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(piece, final)
        undecided = len(text) if final else self._undecided(text)
        # min() keeps the first of equals, and the stops are sorted: the shorter of two at one place
        found = min(self._stops, key=lambda stop: _find(text, stop), default=None)
        if found is not None and (begin := _find(text, found)) < len(text) and begin <= undecided:
            self.stop, self._held = found, ""
            return text[:begin]
        self._held = text[undecided:]
        return text[:undecided]

    def _undecided(self, text: str) -> int:
        """Where the longest end of `text` begins that is a proper beginning of a stop string; else its length."""
        longest = len(self._stops[-1]) - 1 if self._stops else 0
        for begin in range(max(0, len(text) - longest), len(text)):
            if any(stop.startswith(text[begin:]) and stop != text[begin:] for stop in self._stops):
                return begin
        return len(text)


def _find(text: str, stop: str) -> int:
    """Where `stop` begins in `text`; its length when nowhere."""
    begin = text.find(stop)
    return len(text) if begin < 0 else begin
