"""Perplexity of base, memory and mixture over a text, one definition everywhere.

A window slides over the tokens by a stride and scores the tokens that are new to it, so that each has a long context.
EOS joins the documents; BOS stands first iff the vocabulary adds it. One pass of each model keeps one log-prob per
scored token, and every lambda follows from those. Knows nothing of files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from memdec_edge.engine import Engine
from memdec_edge.errors import CorpusError, OptionError
from memdec_edge.evaluation.windows import Window, slide, thin
from memdec_edge.llama.context import Context
from memdec_edge.long_text import in_pieces
from memdec_edge.mixture.mixing import row_stats
from memdec_edge.mixture.online import Learned, learn
from memdec_edge.mixture.weights import LEAST_INITIAL, Mixture, SoftBayes, lift, shares_of
from memdec_edge.options import EvalOptions, MixtureOptions
from memdec_edge.progress import Advance, progress

LogProbs = npt.NDArray[np.float64]  # nats, [scored tokens]
WORSE = 0.1  # nats


@dataclass(frozen=True)
class Score:
    """`standard_error`: of the perplexity, see perplexity(); NaN for a single window."""

    perplexity: float
    standard_error: float
    bits_per_byte: float


@dataclass(frozen=True)
class Evaluation:
    """`tokens`: scored; `text_tokens`: in the text; `memory`: None without one, several together as one mixture.

    mixture: with fixed weights; auto: with weights that learn from the scored tokens in their order; None without a
    memory. auto_ratio: perplexity of auto over that of mixture, and its paired standard error. auto_weights: mean
    weight of each model in auto, the base first. worse_share: share of tokens that lose more than WORSE nats against
    the base.
    """

    tokens: int
    text_tokens: int
    weight: float  # total lambda of the mixture
    base: Score
    memory: Score | None
    mixture: Score
    auto: Score | None
    auto_ratio: tuple[float, float] | None
    auto_weights: tuple[float, ...]
    worse_share: dict[str, float]  # of "mixture" and "auto"
    lambda_sweep: dict[float, float]  # total lambda -> perplexity


@dataclass(frozen=True)
class TokenScores:
    """Log-probs of the scored tokens under each model alone."""

    windows: list[Window]
    base: LogProbs
    memories: list[LogProbs]
    n_bytes: int  # UTF-8 bytes of the scored tokens
    text_tokens: int

    def mixed(self, weights: Sequence[float]) -> LogProbs:
        """Log-probs of the mixture with a weight for each memory; the base has the rest."""
        return mix([self.base, *self.memories], [max(1 - sum(weights), 0.0), *weights])

    def learned(self, rule: SoftBayes) -> Learned:
        """The mixture whose weights learn from the scored tokens in their order."""
        columns = np.stack([self.base, *self.memories])
        return learn(Mixture(rule.initial, (1.0,) * len(rule.initial)), rule, columns)

    def score(self, weights: Sequence[float]) -> Score:
        """The score of the mixture with a weight for each memory; the base has the rest."""
        return self.score_of(self.mixed(weights))

    def score_of(self, log_probs: LogProbs) -> Score:
        """The score of log-probs of the scored tokens."""
        value, error = perplexity(log_probs, self.windows)
        return Score(value, error, float(-log_probs.sum()) / math.log(2) / max(self.n_bytes, 1))

    def worse(self, log_probs: LogProbs) -> float:
        """The share of tokens that lose more than WORSE nats against the base (the question of 2305.14625)."""
        return float(np.mean(log_probs < self.base - WORSE))

    def sweep(self, shares: Sequence[float], lambdas: Sequence[float]) -> dict[float, float]:
        """Perplexity at each total lambda; the memories divide it in the ratio of `shares`."""
        return {value: self.score([value * share / sum(shares) for share in shares]).perplexity for value in lambdas}


def evaluate(
    engine: Engine,
    documents: Sequence[str],
    options: EvalOptions | None = None,
    mixture: MixtureOptions | None = None,
) -> Evaluation:
    """Score `documents` under base, memories, a fixed mixture, and weights that learn. Errors: score_tokens().

    mixture.total fixes the weights of the fixed mixture, else the memories recommend them. Weights that learn begin
    with what the memories recommend.
    """
    options, mixture = options or EvalOptions(), mixture or MixtureOptions()
    scores = score_tokens(engine, documents, options)
    fixing = None if mixture.total is None else mixture
    weights = list(engine.mixture(fixing).weights)
    shares = weights if sum(weights) else [1.0] * len(weights)
    fixed, auto = scores.mixed(weights), None
    if weights:
        # A weight of a memory's own fixes it elsewhere; here it is what the weight that learns begins with.
        learning = engine.mixture(replace(mixture, total=None))
        begin = lift(shares_of(learning.weights), LEAST_INITIAL)
        rule = learning.rule() or SoftBayes(begin)
        auto = scores.learned(rule)
    return Evaluation(
        tokens=len(scores.base),
        text_tokens=scores.text_tokens,
        weight=sum(weights),
        base=scores.score([0.0] * len(weights)),
        memory=scores.score([share / sum(shares) for share in shares]) if weights else None,
        mixture=scores.score_of(fixed),
        auto=scores.score_of(auto.log_probs) if auto else None,
        auto_ratio=perplexity(auto.log_probs - fixed, scores.windows) if auto else None,
        auto_weights=tuple(auto.weights.mean(1).tolist()) if auto else (),
        worse_share={
            "mixture": scores.worse(fixed),
            **({"auto": scores.worse(auto.log_probs)} if auto else {}),
        },
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
        [base], _ = token_scores(engine.context, tokens, windows, advance)
        memories = []
        for memory in engine.memories:
            warmth = (memory.metadata.temperature,)
            [log_probs], _ = token_scores(memory.context, tokens, windows, advance, warmth, engine.base.n_vocab)
            memories.append(log_probs)
    n_bytes = sum(len(engine.base.piece(token)) for window in windows for token in tokens[window.scored : window.end])
    return TokenScores(windows, base, memories, n_bytes, len(tokens))


def join_documents(engine: Engine, documents: Sequence[str]) -> list[int]:
    """Token ids of all documents, joined by EOS, with BOS first iff the vocabulary adds it."""
    base = engine.base

    def encode(texts: list[str]) -> list[list[int]]:
        return [base.tokenize(text, add_special=False, parse_special=False) for text in texts]

    tokens = [base.bos] if base.add_bos and base.bos >= 0 else []
    for index, document in enumerate(documents):
        if index and base.eos >= 0:
            tokens.append(base.eos)
        tokens += chain.from_iterable(in_pieces(document, encode))
    return tokens


def token_scores(
    context: Context,
    tokens: Sequence[int],
    windows: Sequence[Window],
    advance: Advance,
    temperatures: Sequence[float] = (1.0,),
    n_vocab: int | None = None,
) -> tuple[LogProbs, LogProbs]:
    """Log-probs in nats of every scored token at each temperature, [temperatures, tokens], and the rows' entropies.

    Entropies are those of the first temperature, nats, [tokens]. Ids from n_vocab on leave the model's softmax.
    """
    length = min(n_vocab or context.model.n_vocab, context.model.n_vocab)
    found: list[list[float]] = []
    entropies: list[float] = []
    for window in windows:
        context.truncate(0)
        if window.start < window.scored - 1:
            context.feed(list(tokens[window.start : window.scored - 1]))
        targets = tokens[window.scored : window.end]
        for target, row in zip(targets, context.feed_rows(tokens[window.scored - 1 : window.end - 1]), strict=True):
            stats = [row_stats(row, length, temperature) for temperature in temperatures]
            pairs = zip(stats, temperatures, strict=True)
            found.append([stat.log_prob(row[:length], target, temperature) for stat, temperature in pairs])
            entropies.append(stats[0].entropy)
        advance(len(targets))
    return np.array(found).T, np.array(entropies)


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
