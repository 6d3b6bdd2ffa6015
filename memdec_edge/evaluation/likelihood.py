"""Log-likelihoods of continuations under base, memories and indexes: many sequences in one batch.

engine/scoring.py says what a token is worth, waves.py which requests are read together. The steps of a wave:

    1. the first slot decodes what all contexts begin with, unless the wave before left it there
    2. all slots copy it, and decode the rest of their contexts; the last rows give the first token of each continuation
    3. further slots copy a context for its other continuations, and decode these

A context's only continuation is decoded with it. So an engine of one slot reads each text in one go, with logits of all
rows: its batches are those of a server's echo, and its numbers the same to the bit. Knows nothing of text and of tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from memdec_edge.engine import Engine
from memdec_edge.engine.lookup import Lookup
from memdec_edge.engine.scoring import SLICE, TokenScorer
from memdec_edge.errors import ContextError, OptionError
from memdec_edge.evaluation.waves import Ids, Reading, Stem, Wave, batches, waves
from memdec_edge.llama.context import common_length
from memdec_edge.mixture.rows import Row
from memdec_edge.mixture.weights import Mixture
from memdec_edge.options import MixtureOptions
from memdec_edge.progress import progress


class Request(NamedTuple):
    """Score `tokens` after `context`, which has one token at least."""

    context: Ids
    tokens: Ids


class Likelihood(NamedTuple):
    """log_prob: of all tokens together, nats. greedy: no other token is likelier at any place."""

    log_prob: float
    greedy: bool


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
        self._opening: Ids = ()  # the first slot holds its tokens, the last one perhaps not
        self._learned = [self._begin.mixture]  # the weights before its second token, its third and so on

    def score(self, requests: Sequence[Request]) -> list[Likelihood]:
        """The likelihood of each request, in their order. Raises ContextError for one that is too long."""
        self.engine.cells.require_idle()
        stems: dict[Ids, Stem] = {}
        readings: dict[Request, Reading] = {}
        for request in requests:
            self._check(request)
            if request in readings:
                continue
            readings[request] = reading = Reading(request.tokens, replace(self._begin))
            if request.tokens:
                stems.setdefault(request.context, Stem(request.context)).readings.append(reading)
        count = sum(len(stem.readings) for stem in stems.values())
        with self.engine.lock, progress("log-likelihoods", count, "requests") as advance:
            self._opening = ()  # sessions may have used the slots since
            for wave in waves(stems.values(), self.engine.cells.n_seq, self.engine.n_ctx):
                self._read(wave)
                advance(sum(len(stem.readings) for stem in wave.stems))
        found = (readings[request] for request in requests)
        return [Likelihood(sum(one.log_probs), one.greedy) for one in found]  # summed as lm-eval's clients do

    def _check(self, request: Request) -> None:
        if not request.context:
            raise OptionError("context", "empty", "give the token that stands before every text")
        if len(request.context) + len(request.tokens) - 1 > self.longest:
            raise ContextError(len(request.context), len(request.tokens) - 1, self.longest)

    # --- waves ------------------------------------------------------------------------------------------------------

    def _read(self, wave: Wave) -> None:
        if len(wave.stems) == 1:
            firsts = [self._first(0, wave.stems[0], self._keep(wave.opening), self._learned)]
        else:
            opening = wave.opening[: wave.shared + 1]
            if (kept := self._keep(opening)) < wave.shared:
                self._decode([self._beginning(opening, kept)])
            for context in self._contexts:
                for slot in range(1, len(wave.stems)):
                    context.copy(0, slot)
            firsts = [self._first(slot, stem, wave.shared, self._learned[-1:]) for slot, stem in enumerate(wave.stems)]
        self._decode(firsts)
        parts, unused = [], len(wave.stems)
        for slot, stem in enumerate(wave.stems):
            for number, reading in enumerate(stem.long if len(stem.long) > 1 else ()):
                target, unused = (unused, unused + 1) if number else (slot, unused)
                for context in self._contexts:
                    context.copy(slot, target)
                parts.append(self._rest(target, stem, reading))
        self._decode(parts)

    def _keep(self, opening: Ids) -> int:
        """Leave in the first slot what it holds of `opening`, but for its last token; how much that is.

        An engine of one slot keeps nothing, and neither does one with a model that cannot roll back.
        """
        kept = max(common_length(self._opening, opening) - 1, 0) if self.engine.cells.n_seq > 1 else 0
        for context in self._contexts:
            context.use_threads(0)
            for slot in range(1, self.engine.cells.n_seq):
                context.truncate(0, slot)
            context.truncate(kept, 0)
        kept = min(len(context.tokens[0]) for context in self._contexts)
        for context in self._contexts:
            context.truncate(kept, 0)
        del self._learned[kept + 1 :]
        self._opening = opening
        return kept

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

    def _beginning(self, opening: Ids, kept: int) -> _Part:
        """An opening after the tokens that are there, from which weights learn; its last token is left out."""
        lookup, scorer = Lookup(self._indexes), replace(self._begin, mixture=self._learned[-1])

        def take(rows: list[Row], number: int) -> None:
            at = kept + number + 1
            scorer.score(opening[at], rows, lookup.found(opening, at) if self._indexes else [])
            self._learned.append(scorer.mixture)

        tokens = opening[kept:-1]
        return _Part(0, tokens, len(tokens) if scorer.rule else 0, take)

    def _first(self, slot: int, stem: Stem, read: int, learned: list[Mixture]) -> _Part:
        """A context after the `read` tokens that are there, and its continuation if only one is to be decoded.

        learned: the last are the weights after these tokens; those after each further token of the context are added.
        """
        lookup, scorer = Lookup(self._indexes), replace(self._begin, mixture=learned[-1])
        alone = stem.long[0] if len(stem.long) == 1 else None
        tokens = stem.context + (alone.tokens[:-1] if alone else ())
        n_context = len(stem.context)
        first = read + 1 if self._reads_all else n_context  # the first place whose row is wanted

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
                learned.append(scorer.mixture)

        return _Part(slot, tokens[read:], len(tokens) + 1 - first, take)

    def _rest(self, slot: int, stem: Stem, reading: Reading) -> _Part:
        """A continuation after its first token."""
        lookup, n_context = Lookup(self._indexes), len(stem.context)
        text = stem.context + reading.tokens if self._indexes else ()

        def take(rows: list[Row], number: int) -> None:
            found = lookup.found(text, n_context + number + 1) if self._indexes else []
            reading.take(rows, found, number + 1)

        return _Part(slot, reading.tokens[:-1], len(reading.tokens) - 1, take)
