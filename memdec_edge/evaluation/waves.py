"""What is read together: continuations of one context, contexts that begin alike, batches of their tokens.

A wave decodes once what its texts begin with, such as examples that stand before each question. Knows nothing of
models.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import NamedTuple

from memdec_edge.engine.scoring import TokenScorer
from memdec_edge.llama.context import common_length
from memdec_edge.mixture.rows import Found, Row

PASS = 64  # tokens that cost as much as one more pass, about
Ids = tuple[int, ...]


@dataclass(eq=False)
class Reading:
    """One continuation, and what was found of it so far."""

    tokens: Ids
    scorer: TokenScorer
    log_probs: list[float] = field(default_factory=list)
    greedy: bool = True

    def take(self, rows: Sequence[Row], found: Sequence[Found], at: int) -> None:
        """Score token `at`, the next one. rows, found: see TokenScorer."""
        token, out = self.tokens[at], self.scorer.out
        self.log_probs.append(self.scorer.score(token, rows, found).log_prob)
        self.greedy &= bool(out[token] == out.max())


@dataclass(eq=False)
class Stem:
    """A context, and continuations of it."""

    context: Ids
    readings: list[Reading] = field(default_factory=list)

    @property
    def long(self) -> list[Reading]:
        """Those of which something is decoded: all tokens but the last."""
        return [reading for reading in self.readings if len(reading.tokens) > 1]

    @property
    def slots(self) -> int:
        """Sequences that it needs: one of the continuations goes on in the context's slot."""
        return max(len(self.long), 1)

    @property
    def cells(self) -> int:
        """Tokens that are decoded and stored."""
        return len(self.context) + sum(len(reading.tokens) - 1 for reading in self.readings)


class Wave(NamedTuple):
    """Stems that are read side by side. opening: what all their contexts begin with."""

    stems: tuple[Stem, ...]
    opening: Ids

    @property
    def shared(self) -> int:
        """Tokens that one pass decodes for all stems, 0 where that would not pay.

        Each context decodes the last token of the opening itself: the row after it says what follows there.
        """
        length = len(self.opening) - 1
        return length if length * (len(self.stems) - 1) >= PASS else 0

    @property
    def slots(self) -> int:
        """Sequences that it needs."""
        return sum(stem.slots for stem in self.stems)

    @property
    def cells(self) -> int:
        """Tokens that it stores."""
        return sum(stem.cells for stem in self.stems) - self.shared * (len(self.stems) - 1)


def waves(stems: Iterable[Stem], n_seq: int, n_cells: int) -> Iterator[Wave]:
    """Divide stems into waves of at most `n_seq` sequences and `n_cells` tokens; no stem may be longer alone.

    Neighbours begin alike. A stem joins a wave where a wave of its own would save less than a pass costs: in this wave,
    or in that of its next neighbour.
    """

    def fits(wave: Wave) -> bool:
        return wave.slots <= n_seq and wave.cells <= n_cells

    ordered = [part for stem in sorted(stems, key=lambda stem: stem.context) for part in _divided(stem, fits)]
    wave = None
    for stem, following in zip_longest(ordered, ordered[1:]):
        if wave:
            common = common_length(wave.opening, stem.context)
            both = Wave((*wave.stems, stem), stem.context[:common])
            ahead = common_length(stem.context, following.context) if following else 0
            if fits(both) and both.cells <= wave.cells + stem.cells + PASS and ahead <= common + PASS:
                wave = both
                continue
            yield wave
        wave = Wave((stem,), stem.context)
    if wave:
        yield wave


def _divided(stem: Stem, fits: Callable[[Wave], bool]) -> Iterator[Stem]:
    """The same continuations, divided where one wave is too small for all."""
    part = replace(stem, readings=[])
    for reading in stem.readings:
        grown = replace(stem, readings=[*part.readings, reading])
        if part.readings and not fits(Wave((grown,), ())):
            yield part
            grown = replace(stem, readings=[reading])
        part = grown
    yield part


def batches(
    parts: Sequence[tuple[int, int]], most_tokens: int, most_rows: int
) -> Iterator[list[tuple[int, int, int, int]]]:
    """Divide parts into batches of at most `most_tokens` tokens, at most `most_rows` of them with logits.

    parts: how many tokens each has, and how many of the last ones get logits. Yields (part, start, end, wanted) in
    order: tokens [start, end) of a part, the last `wanted` of them with logits.
    """
    batch: list[tuple[int, int, int, int]] = []
    tokens = rows = 0
    for at, (length, wanted) in enumerate(parts):
        start = 0
        while start < length:
            silent = max(length - wanted - start, 0)  # before the first that gets logits
            count = min(most_tokens - tokens, silent + most_rows - rows, length - start)
            if not count:
                yield batch
                batch, tokens, rows = [], 0, 0
                continue
            with_logits = max(count - silent, 0)
            batch.append((at, start, start + count, with_logits))
            start, tokens, rows = start + count, tokens + count, rows + with_logits
    if batch:
        yield batch
