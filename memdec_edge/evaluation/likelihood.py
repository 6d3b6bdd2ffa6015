"""Log-likelihoods of continuations under base, memories and indexes: many sequences in one batch.

Weights that learn do so from the last tokens of the context, as a session from its prompt, and then from each token of
the continuation, before they mix the next. Requests with the same context share it: it is decoded and stored once.

    1. all contexts of a wave are decoded, side by side; their last rows give the first token of each continuation
    2. each slot is copied for the other continuations of its context, which shares its cells
    3. all continuations are decoded, side by side

Knows nothing of text and of tasks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from memdec_edge.engine import Engine
from memdec_edge.engine.lookup import Lookup
from memdec_edge.errors import ContextError, OptionError
from memdec_edge.mixture.mixing import mix, row_stats
from memdec_edge.mixture.online import hold, learn
from memdec_edge.mixture.rows import Found, Row, RowStats
from memdec_edge.mixture.weights import Mixture
from memdec_edge.options import MixtureOptions
from memdec_edge.progress import progress

ROWS = 64  # with logits in one batch: at 151,936 tokens they take 39 MB for each model
Ids = tuple[int, ...]


class Request(NamedTuple):
    """Score `tokens` after `context`, which has one token at least.

    begin: the weights that earlier text left; the context, which is a part of it, then teaches nothing more. None: the
    weights begin anew, and learn from the context.
    """

    context: Ids
    tokens: Ids
    begin: Mixture | None = None


class Likelihood(NamedTuple):
    """log_prob: of all tokens together, nats. greedy: each is the likeliest there. mixture: the weights after them."""

    log_prob: float
    greedy: bool
    mixture: Mixture


@dataclass(eq=False)
class _Reading:
    """One continuation, and what was found of it so far."""

    tokens: Ids
    mixture: Mixture
    log_prob: float = 0.0
    greedy: bool = True


@dataclass(eq=False)
class _Stem:
    """A context, and continuations of it. first: the first of its tokens from which the weights learn."""

    context: Ids
    first: int
    begin: Mixture | None
    readings: list[_Reading] = field(default_factory=list)

    @property
    def slots(self) -> int:
        """Sequences that it needs: continuations of one token need no decode, and one goes on in the context's slot."""
        return max(sum(len(reading.tokens) > 1 for reading in self.readings), 1)

    @property
    def cells(self) -> int:
        """Tokens that it stores; the last one of a continuation is not decoded."""
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
        self.begin, self._indexes = chosen.mixture, chosen.indexes
        self._rule = chosen.rule()
        self._evidence = options.evidence if self._rule else 0
        models = [engine.base, *(memory.model for memory in chosen.memories)]
        self._contexts = [engine.context, *(memory.context for memory in chosen.memories)]
        self._temperatures = (1.0, *chosen.mixture.temperatures)
        n_vocab = engine.base.n_vocab
        self._lengths = [min(n_vocab, model.n_vocab) for model in models]
        self._row: Row = np.empty(n_vocab, np.float32)
        self.longest = engine.longest(chosen.memories)  # tokens of context and continuation, but for the last one

    def score(self, requests: Sequence[Request]) -> list[Likelihood]:
        """The likelihood of each request, in their order. Raises ContextError for one that is too long."""
        self.engine.cells.require_idle()
        stems: dict[tuple[Ids, Mixture | None], _Stem] = {}
        readings: dict[Request, _Reading] = {}
        for request in requests:
            self._check(request)
            if request in readings:
                continue
            context, tokens, begin = request
            readings[request] = reading = _Reading(tokens, begin or self.begin)
            if tokens:
                first = len(context) if begin else max(1, len(context) - self._evidence)
                stems.setdefault((context, begin), _Stem(context, first, begin)).readings.append(reading)
        ordered = [stems[key] for key in sorted(stems, key=lambda key: (len(key[0]), key[0]))]
        with self.engine.lock, progress("log-likelihoods", sum(stem.cells for stem in ordered)) as advance:
            for wave in self._waves(ordered):
                self._read_wave(wave)
                advance(sum(stem.cells for stem in wave))
        found = (readings[request] for request in requests)
        return [Likelihood(one.log_prob, one.greedy, one.mixture) for one in found]

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
        self._decode([self._stem_part(slot, stem) for slot, stem in enumerate(wave)])
        parts, unused = [], len(wave)
        for slot, stem in enumerate(wave):
            for number, reading in enumerate(one for one in stem.readings if len(one.tokens) > 1):
                target, unused = (unused, unused + 1) if number else (slot, unused)
                for context in self._contexts:
                    context.copy(slot, target)
                parts.append(self._reading_part(target, stem, reading))
        self._decode(parts)

    def _decode(self, parts: Sequence[_Part]) -> None:
        """Decode all parts, batch by batch, in every model, and give the rows to who takes them."""
        most = min(context.n_batch for context in self._contexts)
        for batch in batches([(len(part.tokens), part.wanted) for part in parts], most, ROWS):
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

    def _stem_part(self, slot: int, stem: _Stem) -> _Part:
        """A context: rows of its evidence, and the one that gives the first token of each continuation."""
        lookup, columns, classes = Lookup(self._indexes), list[list[float]](), list[list[int]]()

        def take(rows: list[Row], number: int) -> None:
            at = stem.first + number
            found = lookup.found(stem.context, at) if self._indexes else []
            if at < len(stem.context):
                stats = [
                    row_stats(row, length, temperature)
                    for row, length, temperature in zip(rows, self._lengths, self._temperatures, strict=True)
                ]
                columns.append(self._column(rows, stats, found, stem.context[at]))
                classes.append([one.klass for one in found])
                return
            mixture = stem.begin or self._after(columns, classes)
            for reading in stem.readings:
                reading.mixture = mixture
            self._take_token(rows, found, stem.readings, 0)

        return _Part(slot, stem.context, len(stem.context) - stem.first + 1, take)

    def _reading_part(self, slot: int, stem: _Stem, reading: _Reading) -> _Part:
        """A continuation after its first token."""
        lookup, tokens = Lookup(self._indexes), (*stem.context, *reading.tokens) if self._indexes else ()

        def take(rows: list[Row], number: int) -> None:
            found = lookup.found(tokens, len(stem.context) + number + 1) if self._indexes else []
            self._take_token(rows, found, [reading], number + 1)

        return _Part(slot, reading.tokens[:-1], len(reading.tokens) - 1, take)

    def _after(self, columns: list[list[float]], classes: list[list[int]]) -> Mixture:
        """The weights once the evidence had its say."""
        if not self._rule or not columns:
            return self.begin
        matched = np.array(classes, np.int32).reshape(len(columns), -1).T
        return learn(self.begin, self._rule, np.array(columns).T, np.ascontiguousarray(matched)).mixture

    def _take_token(self, rows: list[Row], found: list[Found], readings: Sequence[_Reading], at: int) -> None:
        """Score token `at` of each of `readings`, which share one mixture until then."""
        before = readings[0].mixture
        stats = mix(rows[0], rows[1:], before, self._row, [found] if self._indexes else None)
        likeliest = int(self._row[: min(self._lengths)].argmax())
        classes = np.array([one.klass for one in found], np.int32)[:, None]
        for reading in readings:
            token = reading.tokens[at]
            column = np.array(self._column(rows, stats, found, token))[:, None]
            learned = learn(before, self._rule, column, classes) if self._rule else hold(before, column, classes)
            reading.log_prob += float(learned.log_probs[0])
            reading.greedy &= token == likeliest
            reading.mixture = learned.mixture if self._rule else before

    def _column(
        self, rows: Sequence[Row], stats: Sequence[RowStats], found: Sequence[Found], token: int
    ) -> list[float]:
        """The log-prob of a token under each voice, nats: base, memories, indexes."""
        each = zip(rows, stats, self._lengths, self._temperatures, strict=True)
        said = [stat.log_prob(row[:length], token, temperature) for row, stat, length, temperature in each]
        return [*said, *(one.log_prob(token) for one in found)]


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
