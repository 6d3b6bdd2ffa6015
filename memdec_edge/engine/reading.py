"""How prompts are read: pieces of several in one batch of each model, and what the model says of their tokens.

What a model says of a prompt's last tokens is the evidence from which the mixture's weights learn. A token's log-prob
comes from the row before it, so these tokens are decoded with logits on every row. A context keeps the log-probs that
it gave; only rows that it lacks are decoded again. Knows nothing of weights.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memdec_edge.llama.context import Context
from memdec_edge.mixture.mixing import row_stats
from memdec_edge.mixture.rows import Row

LOGITS = 10_000_000  # of a batch, all rows together: 40 MB, which llama.cpp keeps


class Reader:
    """Reads prompts in one context. n_vocab: ids of the base; temperature divides the logits before the softmax."""

    def __init__(self, context: Context, n_vocab: int, temperature: float) -> None:
        self.context, self._temperature = context, temperature
        self._length = min(n_vocab, context.model.n_vocab)

    def piece(self, tokens: Sequence[int], slot: int, wanted: Sequence[int]) -> "Piece":
        """What the slot lacks of all `tokens` but the last, with the log-probs at the positions `wanted`.

        The slot holds a beginning of `tokens`.
        """
        held, last = len(self.context.tokens[slot]), len(tokens) - 1
        missing = (at for at in wanted if self.context.noted(slot, at, tokens[at]) is None)
        rows = next(missing, len(tokens)) - 1
        return Piece(self, tokens, slot, min(held, rows), rows, last)

    def note(self, tokens: Sequence[int], slot: int, at: int, row: Row) -> None:
        """Let the context keep the log-prob of tokens[at]; row: the logits before it."""
        log_prob = -math.inf
        if tokens[at] < self._length:
            stats = row_stats(row, self._length, self._temperature, self.context.model.path)
            log_prob = stats.log_prob(row, tokens[at], self._temperature)
        self.context.note(slot, at, tokens[at], log_prob)

    def log_prob(self, tokens: Sequence[int], slot: int, at: int) -> float:
        """The log-prob of tokens[at], nats, which read() noted."""
        found = self.context.noted(slot, at, tokens[at])
        assert found is not None, f"token {at} was not read with logits"
        return found


@dataclass(slots=True)
class Piece:
    """What a slot of one context is to hold of a prompt: tokens[:end].

    It keeps `begin` tokens of what it holds. Those from `rows` on are decoded with logits, for log-probs.
    """

    reader: Reader
    tokens: Sequence[int]
    slot: int
    begin: int
    rows: int
    end: int

    @property
    def held(self) -> int:
        """Tokens that the slot holds."""
        return len(self.reader.context.tokens[self.slot])


def read(pieces: Iterable[Piece]) -> None:
    """Decode pieces, those of one context in common batches, and note the log-probs of their rows.

    Raises as Context.prefill(), and NumericsError for a row that is no distribution. What was decoded until then stays.
    """
    unread: dict[Context, list[Piece]] = {}
    for piece in pieces:
        if piece.held > piece.begin:
            piece.reader.context.truncate(piece.begin, piece.slot)
        if piece.held < piece.end:
            unread.setdefault(piece.reader.context, []).append(piece)
    for context, found in unread.items():
        context.use_threads(0)
        while found := [piece for piece in found if piece.held < piece.end]:
            _read_batch(context, found)
        context.wait()


def _read_batch(context: Context, pieces: Sequence[Piece]) -> None:
    """Decode one batch: of each piece, in order, as much as still finds room."""
    room, rows = context.n_batch, max(LOGITS // context.model.n_vocab, 1)
    parts: list[tuple[Piece, Sequence[int], int]] = []
    for piece in pieces:
        held = piece.held
        first = max(piece.rows, held)
        end = min(piece.end, held + room, first + rows)
        if end > held:
            count = max(end - first, 0)
            parts.append((piece, piece.tokens[held:end], count))
            room, rows = room - (end - held), rows - count
    context.decode([(piece.slot, tokens) for piece, tokens, _ in parts], [count for *_, count in parts])
    if rows_of := [(piece, count) for piece, _, count in parts if count]:
        logits = iter(context.wanted_rows())
        for piece, count in rows_of:
            for at in range(piece.held - count + 1, piece.held + 1):
                piece.reader.note(piece.tokens, piece.slot, at, next(logits))
