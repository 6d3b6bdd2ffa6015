"""The Python API: open a base with memories, stream text, generate text.

    with open_model("base.gguf", ["memdec-medicine.gguf"]) as model:
        for chunk in model.stream("Anaemia is"):
            print(chunk.text, end="")

`generate` is a fold over `stream`; the command line calls the same functions. Knows nothing of terminals or HTTP.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from memdec_edge.engine import Engine, Sampled, Source
from memdec_edge.engine.lookup import passages
from memdec_edge.errors import OptionError
from memdec_edge.mixture.weights import Vectors
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, MixtureOptions, SamplingOptions
from memdec_edge.text import TextStream

FinishReason = Literal["stop", "length"]
LEARNING = MixtureOptions()  # weights that follow the text
WEAK = 0.1  # memories that never weigh so much together do not help


@dataclass(frozen=True)
class Timings:
    """Tokens and milliseconds of prefill (`prompt`) and decoding (`predicted`), in llama.cpp's names.

    cache_n: tokens of the prompt that an earlier call had left decoded; prompt_n: the others, which this call decoded.
    predicted_ms: time of the steps alone, not of the caller between chunks. draft_n: drafted tokens that the mixture
    verified; draft_n_accepted: those that it accepted.
    """

    cache_n: int
    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    draft_n: int
    draft_n_accepted: int

    @property
    def predicted_per_second(self) -> float:
        """Tokens per second of decoding; 0 where nothing was timed."""
        return 1e3 * self.predicted_n / self.predicted_ms if self.predicted_ms else 0.0


@dataclass(frozen=True)
class Chunk:
    """One step of a stream: the text that may be shown now, the token behind it, and at the end the reason.

    log_prob: nats, under the mixture before sampling; log_probs: under each voice: base, memories, indexes. weights: of
    each voice in the mixture that gave the token, in the same order. share: the part of memories and indexes in the
    token's probability, 0 to 1. source: where the text that ends with the token stands in an indexed document, word for
    word. The last chunk, which ends the stream, has no token; its weights are those at the end, without a match.
    """

    text: str
    token: int | None
    log_prob: float | None
    finish_reason: FinishReason | None
    timings: Timings
    log_probs: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    share: float | None = None
    helps: bool = True  # see Completion
    source: Source | None = None
    matched: Vectors = ()  # at the end, see Mixture


@dataclass(frozen=True)
class Completion:
    """A whole generation. `tokens`: ids without the end-of-generation token. weights: see Chunk, at the end.

    helps: whether the memories together ever weighed WEAK or more; where not, they know nothing of this text. sources:
    of the tokens that stand in indexed documents, one for each unbroken passage, in the order of the text. matched: the
    weights after a match, by its length, see mixture.weights.Mixture.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    timings: Timings
    weights: tuple[float, ...]
    helps: bool
    sources: list[Source]
    matched: Vectors


class LanguageModel:
    """A base and its memories, ready to generate. Close it, or use it in a with-block.

    Threads may share it. Their calls take turns, step by step; a stream needs a slot of its own (LoadOptions.n_seq) and
    raises BusyError while other streams hold all of them.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def stream(
        self,
        prompt: str | list[int],
        sampling: SamplingOptions | None = None,
        generation: GenerationOptions | None = None,
        mixture: MixtureOptions | None = LEARNING,
    ) -> Iterator[Chunk]:
        """Continue `prompt` (text, or token ids) without a chat template, one chunk per token.

        mixture: how much the memories weigh, by default as the text shows; None: what they recommend.

        A chunk's token may have been decoded together with those of the next chunks. Raises ContextError when the
        prompt, or the prompt and an explicit n_predict, exceed the context; OptionError for an empty prompt; BusyError
        while other streams hold all slots or cells (without n_predict a stream reserves the whole context); Cancelled
        on Ctrl-C inside a decode.
        """
        sampling, generation = sampling or SamplingOptions(), generation or GenerationOptions()
        engine = self.engine
        tokens = engine.base.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            raise OptionError("prompt", "empty", "give some text to continue")
        limit = None if generation.n_predict < 0 else len(tokens) + generation.n_predict
        text = TextStream(generation.stop)
        with closing(
            engine.session(tokens, sampling, generation, mixture=engine.mixture(mixture), limit=limit)
        ) as session:
            cache_n, done = min(session.n_cached, len(tokens) - 1), 0  # the first step decodes the last token
            start = time.perf_counter()
            session.prefill()
            prompt_ms, predicted_ms = 1e3 * (time.perf_counter() - start), 0.0

            def timings() -> Timings:
                read, drafted, accepted = len(tokens) - cache_n, session.n_drafted, session.n_accepted
                return Timings(cache_n, read, prompt_ms, done, predicted_ms, drafted, accepted)

            def helps() -> bool:
                return not session.memories or session.highest >= WEAK

            source: Source | None = None
            while not session.finished and not text.stopped:
                position = len(session.tokens)
                start = time.perf_counter()
                [samples] = engine.step([session])
                predicted_ms += 1e3 * (time.perf_counter() - start)
                for sample in samples:
                    if sample.token in engine.base.eog_tokens:
                        break
                    done += 1
                    position += 1
                    source = session.lookup.source(session.tokens, position, source)
                    yield Chunk(
                        text.push(engine.base.piece(sample.token)), sample.token, sample.log_prob, None, timings(),
                        sample.log_probs, sample.weights, memory_share(sample), helps(), source,
                    )  # fmt: skip
                    if text.stopped:
                        break
            rest = text.flush()
            reason: FinishReason = "stop" if text.stopped or session.finished == "stop" else "length"
            yield Chunk(rest, None, None, reason, timings(), weights=session.mixture.shares, helps=helps(),
                matched=session.mixture.matched)  # fmt: skip

    def generate(
        self,
        prompt: str | list[int],
        sampling: SamplingOptions | None = None,
        generation: GenerationOptions | None = None,
        mixture: MixtureOptions | None = LEARNING,
    ) -> Completion:
        """The whole continuation of `prompt`; arguments and errors as in stream()."""
        text: list[str] = []
        tokens: list[int] = []
        sources: list[Source] = []
        for chunk in self.stream(prompt, sampling, generation, mixture):
            text.append(chunk.text)
            sources = passages(sources, chunk.source)
            tokens += [] if chunk.token is None else [chunk.token]
        assert chunk.finish_reason is not None  # a stream always ends with a reason
        return Completion(
            "".join(text),
            tokens,
            chunk.finish_reason,
            chunk.timings,
            chunk.weights,
            chunk.helps,
            sources,
            chunk.matched,
        )

    def quote(self, source: Source) -> str:
        """The passage of a document that a source names. Raises ModelFileError where its index was cut short meanwhile,
        and OptionError where it was removed."""
        index = next((index for index in self.engine.indexes if index.path == source.index), None)
        if index is None:
            raise OptionError("memory", source.index, "it was removed; add it again")
        index.file.check_whole()
        tokens = index.file.tokens[source.after - (source.end - source.start) : source.after]
        return b"".join(self.engine.base.piece(int(token)) for token in tokens).decode("utf-8", "replace")

    def close(self) -> None:
        """Free the models."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def memory_share(sample: Sampled) -> float:
    """The part of memories and indexes in a token's probability: the sum of their w_i p_i, divided by p_mix; 0 to 1."""
    base = sample.weights[0] * math.exp(min(sample.log_probs[0] - sample.log_prob, 700.0))
    return min(max(1.0 - base, 0.0), 1.0)


def open_model(
    base: Path | str,
    memories: Iterable[Path | str | MemoryOptions] = (),
    options: LoadOptions | None = None,
) -> LanguageModel:
    """Open a base GGUF with memories and indexes (paths, or MemoryOptions with a weight). Errors: see Engine."""
    chosen = [memory if isinstance(memory, MemoryOptions) else MemoryOptions(Path(memory)) for memory in memories]
    return LanguageModel(Engine(base, chosen, options))
