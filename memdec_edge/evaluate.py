"""Perplexity of base, memory and mixture over a text, one definition everywhere.

A window slides over the tokens by a stride and only tokens new to it are scored, so that each has a long context.
Documents are joined by EOS; BOS stands first iff the vocabulary adds it. One pass per model keeps one log-prob per scored
token, from which every lambda follows. Knows nothing of files or terminals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdec_edge import fusion
from memdec_edge.engine import Engine
from memdec_edge.errors import CorpusError, OptionError
from memdec_edge.llama import Context
from memdec_edge.options import EvalOptions
from memdec_edge.progress import Advance, progress

LogProbs = npt.NDArray[np.float64]  # nats, [scored tokens]


@dataclass(frozen=True)
class Window:
    """Tokens [start, end) are decoded, [scored, end) are scored."""

    start: int
    scored: int
    end: int


@dataclass(frozen=True)
class Score:
    """`standard_error`: of the perplexity, from the spread of the windows' mean log-probs; NaN for a single window."""

    perplexity: float
    standard_error: float
    bits_per_byte: float


@dataclass(frozen=True)
class Evaluation:
    """`tokens`: scored; `text_tokens`: in the whole text; `memory` is None without a memory (several are one mixture)."""

    tokens: int
    text_tokens: int
    weight: float  # total lambda of the mixture
    base: Score
    memory: Score | None
    mixture: Score
    lambda_sweep: dict[float, float]  # total lambda -> perplexity

    @property
    def best_lambda(self) -> float:
        """The lambda of the sweep with the lowest perplexity."""
        return min(self.lambda_sweep, key=self.lambda_sweep.__getitem__)


def evaluate(
    engine: Engine, documents: Sequence[str], options: EvalOptions | None = None, total: float | None = None
) -> Evaluation:
    """Score `documents` under base, memories and their mixture with engine.weights(total).

    Raises OptionError when the window exceeds the context and CorpusError for a text of fewer than two tokens.
    """
    options = options or EvalOptions()
    if options.window > engine.n_ctx:
        raise OptionError("--window", options.window, f"the context is {engine.n_ctx} tokens; use at most that")
    tokens = join_documents(engine, documents)
    if len(tokens) < 2:
        raise CorpusError("the text", f"{len(tokens)} tokens are too few to score; give a longer one")
    windows = sample(slide(len(tokens), options.window, options.stride), options.max_tokens)
    weights = engine.weights(total)
    weight = min(sum(weights), 1.0)
    n_scored = sum(window.end - window.scored for window in windows)
    with progress("perplexity", n_scored * (1 + len(engine.memories))) as advance:
        base = token_log_probs(engine.context, tokens, windows, advance)
        parts = [
            token_log_probs(memory.context, tokens, windows, advance, engine.base.n_vocab, memory.facts.temperature)
            for memory in engine.memories
        ]
    shares = weights if weight else [1.0] * len(parts)
    memory = mix(parts, [share / sum(shares) for share in shares])
    n_bytes = sum(len(engine.base.piece(token)) for window in windows for token in tokens[window.scored : window.end])

    def score(log_probs: LogProbs) -> Score:
        value, error = perplexity(log_probs, windows)
        return Score(value, error, float(-log_probs.sum()) / math.log(2) / max(n_bytes, 1))

    lambdas = options.lambdas if parts else ()
    sweep = [perplexity(mix([base, memory], [1 - value, value]), windows)[0] for value in lambdas]
    return Evaluation(
        tokens=n_scored,
        text_tokens=len(tokens),
        weight=weight,
        base=score(base),
        memory=score(memory) if parts else None,
        mixture=score(mix([base, *parts], [1 - weight, *weights])),
        lambda_sweep=dict(zip(lambdas, sweep, strict=True)),
    )


def join_documents(engine: Engine, documents: Sequence[str]) -> list[int]:
    """Token ids of all documents, joined by EOS, with BOS first iff the vocabulary adds it."""
    base = engine.base
    tokens = [base.bos] if base.add_bos and base.bos >= 0 else []
    for index, document in enumerate(documents):
        if index and base.eos >= 0:
            tokens.append(base.eos)
        tokens += base.tokenize(document, add_special=False, parse_special=False)
    return tokens


def slide(n_tokens: int, window: int, stride: int) -> list[Window]:
    """Windows over n_tokens >= 2 tokens; the first scores all but its first token, the others `stride` new ones."""
    windows = [Window(0, 1, min(window, n_tokens))]
    while windows[-1].end < n_tokens:
        end = min(windows[-1].end + stride, n_tokens)
        windows.append(Window(max(end - window, 0), windows[-1].end, end))
    return windows


def sample(windows: list[Window], max_tokens: int) -> list[Window]:
    """Evenly spaced windows that score at most `max_tokens` (0: all windows), at least one."""
    longest = max(window.end - window.scored for window in windows)
    count = max(max_tokens // longest, 1) if max_tokens else len(windows)
    if count >= len(windows):
        return windows
    return [windows[(2 * index + 1) * len(windows) // (2 * count)] for index in range(count)]


def token_log_probs(
    context: Context,
    tokens: Sequence[int],
    windows: Sequence[Window],
    advance: Advance,
    n_vocab: int | None = None,
    temperature: float = 1.0,
) -> LogProbs:
    """Log-prob of every scored token under one model; ids at or beyond n_vocab leave its softmax."""
    length = min(n_vocab or context.model.n_vocab, context.model.n_vocab)
    found: list[float] = []
    for window in windows:
        context.truncate(0)
        if window.start < window.scored - 1:
            context.feed(list(tokens[window.start : window.scored - 1]))
        targets = tokens[window.scored : window.end]
        for target, row in zip(targets, context.feed_rows(tokens[window.scored - 1 : window.end - 1]), strict=True):
            stats = fusion.row_stats(row, length, temperature)
            found.append(float(row[target]) / temperature - stats.log_normaliser if target < length else -math.inf)
        advance(len(targets))
    return np.array(found)


def mix(parts: Sequence[LogProbs], weights: Sequence[float]) -> LogProbs:
    """log sum_i w_i p_i, by log-add, for weights >= 0."""
    if not parts:
        return np.zeros(0)
    terms = [part + math.log(weight) for part, weight in zip(parts, weights, strict=True) if weight > 0]
    return np.asarray(np.logaddexp.reduce(terms, axis=0))


def perplexity(log_probs: LogProbs, windows: Sequence[Window]) -> tuple[float, float]:
    """exp of the mean negative log-prob, and its standard error over windows (delta method)."""
    with np.errstate(over="ignore"):  # a hopeless model's perplexity is infinite, not an error
        value = float(np.exp(-log_probs.mean()))
    counts = np.array([window.end - window.scored for window in windows])
    ends = np.cumsum(counts)
    means = np.array([log_probs[end - count : end].mean() for count, end in zip(counts, ends, strict=True)])
    if len(means) < 2:
        return value, math.nan
    return value, value * float(means.std(ddof=1)) / math.sqrt(len(means))
