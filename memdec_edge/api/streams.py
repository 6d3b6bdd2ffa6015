"""A session's samples become chunks: whole characters, stop strings, reasons, timings.

Stream serves one session; generate() steps a single one to its end, and side_by_side() two. Knows nothing of chats.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from memdec_edge.api.asynchronous import check_wanted
from memdec_edge.api.results import Chunk, FinishReason, Timings, memory_share
from memdec_edge.engine import Engine, MemoryMixture, Sampled, Session, Source
from memdec_edge.errors import OptionError
from memdec_edge.options import GenerationOptions, SamplingOptions
from memdec_edge.text import TextStream

WEAK = 0.1  # memories that never weigh so much together do not help


@dataclass(frozen=True)
class Request:
    """What is asked of an engine. rates: how much each token counts for the weights, 0 to 1; None: all fully."""

    tokens: list[int]
    rates: list[float] | None
    sampling: SamplingOptions
    generation: GenerationOptions
    mixture: MemoryMixture

    def open(self, engine: Engine, n_sessions: int = 1) -> Session:
        """A session for it, with room for `n_sessions` that go on from its prompt.

        Raises OptionError for an empty prompt, ContextError where they never find room, and as Engine.session().
        """
        if not self.tokens:
            raise OptionError("prompt", "empty", "give some text to continue")
        n_predict, memories = self.generation.n_predict, self.mixture.running().memories
        limit = None if n_predict < 0 else len(self.tokens) + n_predict
        if limit is None and n_sessions > 1:
            room = engine.room(len(self.tokens), n_sessions, memories)
            limit = min(len(self.tokens) + max(room, 0), engine.longest(memories))
        elif limit is not None:
            engine.require_room(len(self.tokens), n_predict, n_sessions, memories)
        return engine.session(
            self.tokens, self.sampling, self.generation, mixture=self.mixture, limit=limit, rates=self.rates
        )


class Stream:
    """The text of one session, chunk by chunk."""

    def __init__(self, engine: Engine, session: Session) -> None:
        self.engine, self.session = engine, session
        self.text = TextStream(session.generation.stop)
        self._n_prompt = len(session.tokens)
        self._cached = min(session.n_cached, self._n_prompt - 1)  # the first step decodes the last token
        self._prompt_ms = self._predicted_ms = 0.0
        self._done = 0
        self._source: Source | None = None  # of the last token

    @property
    def over(self) -> bool:
        """Whether nothing more comes but end()."""
        return bool(self.session.finished or self.text.stopped)

    def read(self) -> None:
        """Decode the prompt, batch by batch: other sessions may step between them."""
        while self.read_some(self.engine.context.n_batch):
            check_wanted()

    def read_some(self, most: int) -> int:
        """Decode at most `most` tokens of the prompt; return how many are left."""
        return read_together(self.engine, {self: most})[self]

    def read_for(self, seconds: float) -> None:
        """Count time in which the prompt was read."""
        self._prompt_ms += 1e3 * seconds

    def take(self, samples: Sequence[Sampled], seconds: float) -> Generator[Chunk, None, None]:
        """A chunk for each sample of a step that took `seconds`."""
        self._predicted_ms += 1e3 * seconds
        base = self.engine.base
        for sample in samples:
            if sample.token in base.eog_tokens or self.text.stopped:
                return
            self._done += 1
            session = self.session
            self._source = session.lookup.source(session.tokens, self._n_prompt + self._done, self._source)
            yield Chunk(
                self.text.push(base.piece(sample.token)), sample.token, sample.log_prob, None, self.timings(),
                sample.log_probs, sample.weights, memory_share(sample), self._helps(), sample.top, self._source,
            )  # fmt: skip

    def end(self) -> Chunk:
        """The last chunk: what was held back, and why the text ended. Raises what ended the session by an error."""
        if self.session.error:
            raise self.session.error
        reason: FinishReason = "stop" if self.text.stopped or self.session.finished == "stop" else "length"
        mixture = self.session.mixture
        return Chunk(
            self.text.flush(), None, None, reason, self.timings(), weights=mixture.shares, helps=self._helps(),
            matched=mixture.matched,
        )  # fmt: skip

    def _helps(self) -> bool:
        return not self.session.memories or self.session.weighing.highest >= WEAK

    def timings(self) -> Timings:
        """Of all so far."""
        session = self.session
        read = self._n_prompt - self._cached
        return Timings(
            self._cached, read, self._prompt_ms, self._done, self._predicted_ms, session.n_drafted, session.n_accepted
        )


def read_together(engine: Engine, most: Mapping[Stream, int]) -> dict[Stream, int]:
    """Decode at most so many tokens of the prompt of each stream, in common batches; return how many are left.

    Each stream counts all of the time. Errors: see Engine.read().
    """
    start = time.perf_counter()
    left = engine.read({stream.session: count for stream, count in most.items()})
    seconds = time.perf_counter() - start
    for stream in most:
        stream.read_for(seconds)
    return {stream: left[stream.session] for stream in most}


def generate(engine: Engine, request: Request) -> Generator[Chunk, None, None]:
    """The chunks of one request. Errors: see Request.open()."""
    with closing(request.open(engine)) as session:
        stream = Stream(engine, session)
        stream.read()
        while not stream.over:
            check_wanted()
            start = time.perf_counter()
            [samples] = engine.step([session])
            yield from stream.take(samples, time.perf_counter() - start)
        yield stream.end()


def side_by_side(engine: Engine, request: Request) -> Generator[tuple[int, Chunk], None, None]:
    """Chunks of the base alone (0) and of the mixture (1), as they come; both go on from one prefill.

    Takes two slots, and cells for two. Errors: see Request.open().
    """
    with ExitStack() as stack:
        mixed = stack.enter_context(closing(request.open(engine, 2)))
        streams = [Stream(engine, mixed)]
        streams[0].read()
        alone = stack.enter_context(closing(engine.fork(mixed)))
        alone.mix(MemoryMixture.of(()))
        streams.insert(0, Stream(engine, alone))
        for stream in streams:
            stream.read()
        while running := [stream for stream in streams if not stream.over]:
            start = time.perf_counter()
            steps = engine.step([stream.session for stream in running])
            seconds = time.perf_counter() - start
            for stream, samples in zip(running, steps, strict=True):
                for chunk in stream.take(samples, seconds):
                    yield streams.index(stream), chunk
        for index, stream in enumerate(streams):
            yield index, stream.end()
