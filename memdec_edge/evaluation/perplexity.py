"""Perplexity of base, memory and mixture over a text, one definition everywhere.

A window slides over the tokens by a stride and scores the tokens that are new to it, so that each has a long context.
EOS joins the documents; BOS stands first iff the vocabulary adds it. One pass of each model keeps one log-prob per
scored token, and every lambda follows from those. Knows nothing of files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdec_edge.engine import Engine
from memdec_edge.errors import CorpusError, OptionError
from memdec_edge.llama.context import Context
from memdec_edge.mixture import mixing
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
    """`standard_error`: of the perplexity, see perplexity(); NaN for a single window."""

    perplexity: float
    standard_error: float
    bits_per_byte: float


@dataclass(frozen=True)
class Evaluation:
    """`tokens`: scored; `text_tokens`: in the text; `memory`: None without one, several together as one mixture."""

    tokens: int
    text_tokens: int
    weight: float  # total lambda of the mixture
    base: Score
    memory: Score | None
    mixture: Score
    lambda_sweep: dict[float, float]  # total lambda -> perplexity


@dataclass(frozen=True)
class TokenScores:
    """Log-probs of the scored tokens under each model alone."""

    windows: list[Window]
    base: LogProbs
    memories: list[LogProbs]
    n_bytes: int  # UTF-8 bytes of the scored tokens
    text_tokens: int

    def score(self, weights: Sequence[float]) -> Score:
        """The score of the mixture with a weight for each memory; the base has the rest."""
        log_probs = mix([self.base, *self.memories], [max(1 - sum(weights), 0.0), *weights])
        value, error = perplexity(log_probs, self.windows)
        return Score(value, error, float(-log_probs.sum()) / math.log(2) / max(self.n_bytes, 1))

    def sweep(self, shares: Sequence[float], lambdas: Sequence[float]) -> dict[float, float]:
        """Perplexity at each total lambda; the memories divide it in the ratio of `shares`."""
        return {value: self.score([value * share / sum(shares) for share in shares]).perplexity for value in lambdas}


def evaluate(
    engine: Engine, documents: Sequence[str], options: EvalOptions | None = None, total: float | None = None
) -> Evaluation:
    """Score `documents` under base, memories and engine.mixture(total). Errors: score_tokens()."""
    options = options or EvalOptions()
    scores = score_tokens(engine, documents, options)
    weights = list(engine.mixture(total).weights)
    shares = weights if sum(weights) else [1.0] * len(weights)
    return Evaluation(
        tokens=len(scores.base),
        text_tokens=scores.text_tokens,
        weight=sum(weights),
        base=scores.score([0.0] * len(weights)),
        memory=scores.score([share / sum(shares) for share in shares]) if weights else None,
        mixture=scores.score(weights),
        lambda_sweep=scores.sweep(shares, options.lambdas) if weights else {},
    )


def score_tokens(engine: Engine, documents: Sequence[str], options: EvalOptions) -> TokenScores:
    """One pass of each model over `documents`.

    Raises BusyError while a session is open, OptionError when the window exceeds the context and CorpusError for a
    text of fewer than two tokens.
    """
    engine.cells.require_idle()
    if options.window > engine.longest():
        raise OptionError("window", options.window, f"the context is {engine.longest()} tokens; use at most that")
    tokens = join_documents(engine, documents)
    if len(tokens) < 2:
        raise CorpusError("the text", f"{len(tokens)} tokens are too few to score; give a longer one")
    windows = thin(slide(len(tokens), options.window, options.stride), options.max_tokens)
    n_scored = sum(window.end - window.scored for window in windows)
    with progress("perplexity", n_scored * (1 + len(engine.memories))) as advance:
        base = token_log_probs(engine.context, tokens, windows, advance)
        memories = [
            token_log_probs(memory.context, tokens, windows, advance, engine.base.n_vocab, memory.metadata.temperature)
            for memory in engine.memories
        ]
    n_bytes = sum(len(engine.base.piece(token)) for window in windows for token in tokens[window.scored : window.end])
    return TokenScores(windows, base, memories, n_bytes, len(tokens))


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


def thin(windows: list[Window], max_tokens: int) -> list[Window]:
    """Evenly spaced windows of full context that score at most `max_tokens` together; 0: all windows."""
    if not max_tokens or max_tokens >= windows[-1].end - 1:
        return windows
    # The first window scores more tokens, with less context; the last one may score few.
    full = windows[1:-1] or windows[:1]
    count = min(max_tokens // (full[0].end - full[0].scored), len(full))
    if not count:  # less than one window: the beginning of one
        middle = full[len(full) // 2]
        return [Window(middle.start, middle.scored, middle.scored + max_tokens)]
    return [full[(2 * index + 1) * len(full) // (2 * count)] for index in range(count)]


def token_log_probs(
    context: Context,
    tokens: Sequence[int],
    windows: Sequence[Window],
    advance: Advance,
    n_vocab: int | None = None,
    temperature: float = 1.0,
) -> LogProbs:
    """Log-prob in nats of every scored token under one model, whose ids from n_vocab on leave its softmax."""
    length = min(n_vocab or context.model.n_vocab, context.model.n_vocab)
    found: list[float] = []
    for window in windows:
        context.truncate(0)
        if window.start < window.scored - 1:
            context.feed(list(tokens[window.start : window.scored - 1]))
        targets = tokens[window.scored : window.end]
        for target, row in zip(targets, context.feed_rows(tokens[window.scored - 1 : window.end - 1]), strict=True):
            stats = mixing.row_stats(row, length, temperature)
            found.append(stats.log_prob(row[:length], target, temperature))
        advance(len(targets))
    return np.array(found)


def mix(parts: Sequence[LogProbs], weights: Sequence[float]) -> LogProbs:
    """log sum_i w_i p_i of each token, for weights >= 0."""
    if not parts:
        return np.zeros(0)
    terms = [part + math.log(weight) for part, weight in zip(parts, weights, strict=True) if weight > 0]
    return np.asarray(np.logaddexp.reduce(terms, axis=0))


def perplexity(log_probs: LogProbs, windows: Sequence[Window]) -> tuple[float, float]:
    """exp of the mean negative log-prob, and its standard error (delta method).

    Windows are the independent units of the error, weighted by their tokens: the mean is a ratio of sums, and its
    variance that of the ratio estimator (Cochran, Sampling Techniques, 1977, section 2.11). NaN for one window.
    """
    mean = float(log_probs.mean())
    with np.errstate(over="ignore"):  # a hopeless model's perplexity is infinite, not an error
        value = float(np.exp(-mean))
    counts = np.array([window.end - window.scored for window in windows])
    n = len(counts)
    if n < 2:
        return value, math.nan
    residuals = np.add.reduceat(log_probs, np.cumsum(counts) - counts) - mean * counts
    return value, value * math.sqrt(n / (n - 1) * float(residuals @ residuals)) / float(counts.sum())
