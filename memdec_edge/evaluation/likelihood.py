"""Log-likelihoods of continuations under base, memories and indexes: many sequences in one batch.

engine/scoring.py says what a token is worth. Requests with the same context share it: it is decoded and stored once.

    1. the contexts of a wave are decoded, side by side; their last rows give the first token of each continuation
    2. each slot is copied for the other continuations of its context, which shares its cells
    3. these continuations are decoded, side by side

A context's only continuation is decoded with it. So an engine of one slot reads each text in one go, with logits of all
rows: its batches are those of a server's echo, and its numbers the same to the bit. Knows nothing of text and of tasks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from memdec_edge.engine import Engine
from memdec_edge.engine.lookup import Lookup
from memdec_edge.engine.scoring import SLICE, TokenScorer
from memdec_edge.errors import ContextError, OptionError
from memdec_edge.mixture.rows import Found, Row
from memdec_edge.options import MixtureOptions
from memdec_edge.progress import progress

Ids = tuple[int, ...]


class Request(NamedTuple):
    """Score `tokens` after `context`, which has one token at least."""

    context: Ids
    tokens: Ids


class Likelihood(NamedTuple):
    """log_prob: of all tokens together, nats. greedy: no other token is likelier at any place."""

    log_prob: float
    greedy: bool


@dataclass(eq=False)
class _Reading:
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
class _Stem:
    """A context, and continuations of it."""

    context: Ids
    readings: list[_Reading] = field(default_factory=list)

    @property
    def long(self) -> list[_Reading]:
        """Those of which something is decoded: all tokens but the last."""
        return [reading for reading in self.readings if len(reading.tokens) > 1]

    @property
    def slots(self) -> int:
        """Sequences that it needs: one of the continuations goes on in the context's slot."""
        return max(len(self.long), 1)

    @property
    def cells(self) -> int:
        """Tokens that it stores."""
        return len(self.context) + sum(len(reading.tokens) - 1 for reading in self.readings)


class _Part(NamedTuple):
    """Tokens to decode in a slot.

    take: called in order for each of the last `wanted` tokens, with the rows of all models after it and its number.
    """

    slot: int
    tokens: Ids
    wanted: int
    take: Callable[[list[Row], int], None]


class Scorer:
    """Scores continuations with all slots of an engine, under the mixture that `options` choose.

    A call raises BusyError while a session is open, and Cancelled, DecodeError and NumericsError as a session does.
    """

    def __init__(self, engine: Engine, options: MixtureOptions) -> None:
        self.engine, chosen = engine, engine.mixture(options).running()
        self._indexes, self._contexts = chosen.indexes, [engine.context, *(m.context for m in chosen.memories)]
        self._begin = TokenScorer(chosen.mixture, chosen.rule(), np.empty(engine.base.n_vocab, np.float32))
        self._reads_all = self._begin.rule is not None or engine.cells.n_seq == 1
        self.longest = engine.longest(chosen.memories)  # tokens of context and continuation, but for the last one

    def score(self, requests: Sequence[Request]) -> list[Likelihood]:
        """The likelihood of each request, in their order. Raises ContextError for one that is too long."""
        self.engine.cells.require_idle()
        stems: dict[Ids, _Stem] = {}
        readings: dict[Request, _Reading] = {}
        for request in requests:
            self._check(request)
            if request in readings:
                continue
            readings[request] = reading = _Reading(request.tokens, replace(self._begin))
            if request.tokens:
                stems.setdefault(request.context, _Stem(request.context)).readings.append(reading)
        ordered = [stems[key] for key in sorted(stems, key=lambda key: (len(key), key))]
        with self.engine.lock, progress("log-likelihoods", sum(stem.cells for stem in ordered)) as advance:
            for wave in self._waves(ordered):
                self._read_wave(wave)
                advance(sum(stem.cells for stem in wave))
        found = (readings[request] for request in requests)
        return [Likelihood(sum(one.log_probs), one.greedy) for one in found]  # summed as lm-eval's clients do

    def _check(self, request: Request) -> None:
        if not request.context:
            raise OptionError("context", "empty", "give the token that stands before every text")
        if len(request.context) + len(request.tokens) - 1 > self.longest:
            raise ContextError(len(request.context), len(request.tokens) - 1, self.longest)

    # --- waves ------------------------------------------------------------------------------------------------------

    def _waves(self, stems: Sequence[_Stem]) -> Iterator[list[_Stem]]:
        """Stems that find slots and cells together."""
        wave: list[_Stem] = []
        for stem in (part for whole in stems for part in self._divided(whole)):
            if wave and not self._fits([*wave, stem]):
                yield wave
                wave = []
            wave.append(stem)
        if wave:
            yield wave

    def _divided(self, stem: _Stem) -> Iterator[_Stem]:
        """The same continuations, divided where one wave is too small for all."""
        part = replace(stem, readings=[])
        for reading in stem.readings:
            grown = replace(stem, readings=[*part.readings, reading])
            if part.readings and not self._fits([grown]):
                yield part
                grown = replace(stem, readings=[reading])
            part = grown
        yield part

    def _fits(self, stems: Sequence[_Stem]) -> bool:
        slots, cells = sum(stem.slots for stem in stems), sum(stem.cells for stem in stems)
        return slots <= self.engine.cells.n_seq and cells <= self.engine.n_ctx

    def _read_wave(self, wave: Sequence[_Stem]) -> None:
        for context in self._contexts:
            context.clear()
            context.use_threads(0)
        self._decode([self._first(slot, stem) for slot, stem in enumerate(wave)])
        parts, unused = [], len(wave)
        for slot, stem in enumerate(wave):
            for number, reading in enumerate(stem.long if len(stem.long) > 1 else ()):
                target, unused = (unused, unused + 1) if number else (slot, unused)
                for context in self._contexts:
                    context.copy(slot, target)
                parts.append(self._rest(target, stem, reading))
        self._decode(parts)

    def _decode(self, parts: Sequence[_Part]) -> None:
        """Decode all parts, batch by batch, in every model, and give the rows to who takes them."""
        most = min(context.n_batch for context in self._contexts)
        for batch in batches([(len(part.tokens), part.wanted) for part in parts], most, SLICE):
            pieces = [(parts[at].slot, parts[at].tokens[start:end]) for at, start, end, _ in batch]
            wanted = [count for *_, count in batch]
            for context in self._contexts:
                context.decode(pieces, wanted)
            if not any(wanted):
                continue
            models, row = [context.wanted_rows() for context in self._contexts], 0
            for at, _, end, count in batch:
                part = parts[at]
                before = part.wanted - (len(part.tokens) - end) - count
                for number in range(before, before + count):
                    part.take([rows[row] for rows in models], number)
                    row += 1

    # --- rows -------------------------------------------------------------------------------------------------------

    def _first(self, slot: int, stem: _Stem) -> _Part:
        """A context, and its continuation if only one is to be decoded."""
        lookup, scorer, n_context = Lookup(self._indexes), replace(self._begin), len(stem.context)
        alone = stem.long[0] if len(stem.long) == 1 else None
        tokens = stem.context + (alone.tokens[:-1] if alone else ())
        first = 1 if self._reads_all else n_context  # the first place whose row is wanted

        def take(rows: list[Row], number: int) -> None:
            at = first + number
            found = lookup.found(tokens, at) if self._indexes else []
            if at > n_context:
                assert alone
                alone.take(rows, found, at - n_context)
            elif at == n_context:
                for reading in stem.readings:
                    reading.scorer.mixture = scorer.mixture
                    reading.take(rows, found, 0)
            elif scorer.rule:
                scorer.score(tokens[at], rows, found)

        return _Part(slot, tokens, len(tokens) + 1 - first, take)

    def _rest(self, slot: int, stem: _Stem, reading: _Reading) -> _Part:
        """A continuation after its first token."""
        lookup, n_context = Lookup(self._indexes), len(stem.context)
        text = stem.context + reading.tokens if self._indexes else ()

        def take(rows: list[Row], number: int) -> None:
            found = lookup.found(text, n_context + number + 1) if self._indexes else []
            reading.take(rows, found, number + 1)

        return _Part(slot, reading.tokens[:-1], len(reading.tokens) - 1, take)


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
