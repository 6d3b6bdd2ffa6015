"""Bytes of tokens become text that may be shown: whole UTF-8 characters, cut at the first stop string.

A token may end in the middle of a character or of a stop string; whatever might still become one is held back.
Knows nothing of models, tokens or terminals.
"""

import codecs


class TextStream:
    """Incremental UTF-8 with stop strings.

    Whatever the pieces, the texts returned by `push` and `flush` join to the same: all bytes decoded at once
    (malformed ones as U+FFFD), cut where the earliest stop string begins. Where two begin at one place, the
    shorter counts. Text that cannot belong to a stop string is returned at once.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        """`stop`: strings of at least one character; they end the text and are not part of it."""
        self._stops = sorted(stop, key=len)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded and not shown: it may be the beginning of a stop string
        self.stop: str | None = None  # the stop string that ended the text

    @property
    def stopped(self) -> bool:
        """True once a stop string was found; what is pushed after it is ignored."""
        return self.stop is not None

    def push(self, piece: bytes) -> str:
        """Take the bytes of one token, give the text that may be shown now (often "")."""
        return self._advance(piece, final=False)

    def flush(self) -> str:
        """End of the bytes: give what was held back; an unfinished character becomes U+FFFD."""
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
