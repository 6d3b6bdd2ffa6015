"""What the Python API returns: chunks of a stream, whole completions, timings. Knows nothing of how they come about."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from memdec_edge.engine.lookup import Source, passages
from memdec_edge.mixture.rows import Sampled, Top
from memdec_edge.mixture.weights import Vectors

FinishReason = Literal["stop", "length"]


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
    token's probability, 0 to 1. top: the likeliest tokens, where GenerationOptions.logprobs asks for them. source:
    where the text that ends with the token stands in an indexed document, word for word. reasoning: text of a chat's
    answer between <think> and </think>, which `text` then lacks. The last chunk, which ends the stream, has no token;
    its weights are those at the end, without a match.
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
    top: Top | None = None
    source: Source | None = None
    matched: Vectors = ()  # at the end, see Mixture
    reasoning: str = ""


@dataclass(frozen=True)
class Completion:
    """A whole generation. `tokens`: ids without the end-of-generation token. weights: see Chunk, at the end.

    helps: whether the memories together ever weighed a tenth or more; where not, they know nothing of this text.
    sources: of the tokens that stand in indexed documents, one for each unbroken passage, in the order of the text.
    matched: the weights after a match, by its length, see mixture.weights.Mixture. chunks: the stream that it was made
    of.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    timings: Timings
    weights: tuple[float, ...]
    helps: bool
    sources: list[Source] = field(default_factory=list)
    matched: Vectors = ()
    reasoning: str = ""
    chunks: list[Chunk] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, chunks: list[Chunk]) -> "Completion":
        """The sum of a whole stream."""
        last = chunks[-1]
        assert last.finish_reason is not None  # a stream always ends with a reason
        tokens = [chunk.token for chunk in chunks if chunk.token is not None]
        text, reasoning = ("".join(parts) for parts in zip(*((c.text, c.reasoning) for c in chunks), strict=True))
        sources: list[Source] = []
        for chunk in chunks:
            sources = passages(sources, chunk.source)
        return cls(
            text, tokens, last.finish_reason, last.timings, last.weights, last.helps, sources, last.matched, reasoning,
            chunks,
        )  # fmt: skip

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, for the next call of a chat. Its own token ids let that call reuse what is decoded.

        After `continue_final_message` it has the continuation alone; join it to the message that was continued.
        """
        return message_of(self.chunks)


def message_of(chunks: list[Chunk]) -> dict[str, Any]:
    """What was told of an answer so far, as a message: see Completion.message."""
    found: dict[str, Any] = {"role": "assistant", "content": "".join(chunk.text for chunk in chunks)}
    if reasoning := "".join(chunk.reasoning for chunk in chunks):
        return found | {"reasoning_content": reasoning}
    return found | {"tokens": [chunk.token for chunk in chunks if chunk.token is not None]}


def memory_share(sample: Sampled) -> float:
    """The part of memories and indexes in a token's probability: the sum of their w_i p_i, divided by p_mix; 0 to 1."""
    base = sample.weights[0] * math.exp(min(sample.log_probs[0] - sample.log_prob, 700.0))
    return min(max(1.0 - base, 0.0), 1.0)
