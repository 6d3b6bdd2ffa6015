"""Perplexity of base, memory, index and mixture over a text, one definition everywhere.

A window slides over the tokens by a stride and scores the tokens that are new to it, so that each has a long context.
EOS joins the documents; BOS stands first iff the vocabulary adds it. One pass of each model keeps one log-prob per
scored token, and every lambda follows from those. An index is asked after the tokens that the models saw. Knows nothing
of files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from memdec_edge.engine import Engine, MemoryMixture
from memdec_edge.errors import CorpusError, OptionError
from memdec_edge.evaluation.matches import IndexScores, index_scores
from memdec_edge.evaluation.windows import Window, slide, thin
from memdec_edge.llama.context import Context
from memdec_edge.long_text import in_pieces
from memdec_edge.mixture.match import CLASSES
from memdec_edge.mixture.mixing import row_stats
from memdec_edge.mixture.online import Learned, hold, learn
from memdec_edge.mixture.rows import Ids
from memdec_edge.mixture.weights import Mixture, SoftBayes, lifted
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
class MatchClass:
    """Tokens before which the longest match of all indexes had such a length.

    share: of the scored tokens; right: of those, how many are the likeliest continuation; weight: mean of the indexes
    together in auto.
    """

    lengths: tuple[int, int]  # both included
    share: float
    right: float
    weight: float


@dataclass(frozen=True)
class Evaluation:
    """`tokens`: scored; `text_tokens`: in the text; `memory`: None without one, several together as one mixture.

    mixture: with fixed weights; auto: with weights that learn from the scored tokens in their order; None without
    memories and indexes. auto_ratio: perplexity of auto over that of mixture, and its paired standard error.
    auto_weights: mean weight of each voice in auto, the base first, the indexes last. worse_share: share of tokens that
    lose more than WORSE nats against the base. matches: by length; empty without an index.
    """

    tokens: int
    text_tokens: int
    weight: float  # total lambda of the mixture, where an index has its longest matches
    base: Score
    memory: Score | None
    mixture: Score
    auto: Score | None
    auto_ratio: tuple[float, float] | None
    auto_weights: tuple[float, ...]
    worse_share: dict[str, float]  # of "mixture" and "auto"
    lambda_sweep: dict[float, float]  # total lambda -> perplexity
    matches: list[MatchClass]


@dataclass(frozen=True)
class TokenScores:
    """Log-probs of the scored tokens under each voice alone."""

    windows: list[Window]
    base: LogProbs
    memories: list[LogProbs]
    n_bytes: int  # UTF-8 bytes of the scored tokens
    text_tokens: int
    indexes: list[IndexScores] = field(default_factory=list)

    @property
    def columns(self) -> LogProbs:
        """Log-probs of every voice, [1 + memories + indexes, tokens]."""
        return np.stack([self.base, *self.memories, *(index.log_probs for index in self.indexes)])

    @property
    def classes(self) -> Ids:
        """Classes of the indexes' matches, [indexes, tokens]."""
        found = [index.classes for index in self.indexes]
        return np.array(found, np.int32).reshape(len(found), len(self.base))

    def mixed(self, weights: Sequence[float]) -> LogProbs:
        """Log-probs of the mixture with a weight for each memory; the base has the rest, the indexes nothing."""
        return mix([self.base, *self.memories], [max(1 - sum(weights), 0.0), *weights])

    def score(self, weights: Sequence[float]) -> Score:
        """The score of mixed()."""
        return self.score_of(self.mixed(weights))

    def held(self, mixture: Mixture) -> LogProbs:
        """Log-probs of a mixture whose weights stay."""
        return hold(mixture, self.columns, self.classes).log_probs

    def learned(self, rule: SoftBayes) -> Learned:
        """The mixture whose weights learn from the scored tokens in their order."""
        mixture = Mixture(rule.initial, (1.0,) * len(rule.initial), rule.matched)
        return learn(mixture, rule, self.columns, self.classes)

    def matches(self, path: LogProbs) -> list[MatchClass]:
        """A row for each class of match length; path: weights of each voice, [1 + memories + indexes, tokens]."""
        if not self.indexes:
            return []
        longest = self.classes.max(0)
        best = np.stack([index.right for index in self.indexes])[self.classes.argmax(0), np.arange(len(longest))]
        weights = path[-len(self.indexes) :].sum(0)
        found = [longest == klass for klass in range(1 + len(CLASSES))]
        return [
            MatchClass(lengths, float(mine.mean()), float(best[mine].mean()), float(weights[mine].mean()))
            for lengths, mine in zip(((0, 0), *CLASSES), found, strict=True)
            if mine.any()
        ]

    def score_of(self, log_probs: LogProbs) -> Score:
        """The score of log-probs of the scored tokens."""
        value, error = perplexity(log_probs, self.windows)
        return Score(value, error, float(-log_probs.sum()) / math.log(2) / max(self.n_bytes, 1))

    def worse(self, log_probs: LogProbs) -> float:
        """The share of tokens that lose more than WORSE nats against the base (the question of 2305.14625)."""
        return float(np.mean(log_probs < self.base - WORSE))

    def sweep(self, whole: Mixture, lambdas: Sequence[float]) -> dict[float, float]:
        """Perplexity at each total lambda; memories and indexes divide it as they do 1 in `whole`."""
        return {value: self.score_of(self.held(scaled(whole, value))).perplexity for value in lambdas}


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
    chosen = engine.mixture(None if mixture.total is None else mixture)
    fixed, auto = scores.held(chosen.mixture), None
    if chosen.voices:
        # A weight of a memory's own fixes it elsewhere; here it is what the weight that learns begins with.
        learning = engine.mixture(replace(mixture, total=None))
        initial, *matched = lifted(learning.mixture.vectors)
        auto = scores.learned(learning.rule() or SoftBayes(initial, matched=tuple(matched)))
    return Evaluation(
        tokens=len(scores.base),
        text_tokens=scores.text_tokens,
        weight=max(map(sum, chosen.mixture.vectors)),
        base=scores.score_of(scores.base),
        memory=scores.score_of(mix(scores.memories, _alone(chosen))) if chosen.memories else None,
        mixture=scores.score_of(fixed),
        auto=scores.score_of(auto.log_probs) if auto else None,
        auto_ratio=perplexity(auto.log_probs - fixed, scores.windows) if auto else None,
        auto_weights=tuple(auto.weights.mean(1).tolist()) if auto else (),
        worse_share={
            "mixture": scores.worse(fixed),
            **({"auto": scores.worse(auto.log_probs)} if auto else {}),
        },
        lambda_sweep=scores.sweep(_whole(engine, chosen), options.lambdas) if auto else {},
        matches=scores.matches(auto.weights) if auto else [],
    )


def _alone(chosen: MemoryMixture) -> list[float]:
    """The memories' shares without base and indexes; equal ones where all have weight 0."""
    weights = chosen.weights if sum(chosen.weights) else (1.0,) * len(chosen.weights)
    return [weight / sum(weights) for weight in weights]


def _whole(engine: Engine, chosen: MemoryMixture) -> Mixture:
    """How memories and indexes divide a total of 1."""
    if all(voice.options.weight is None for voice in chosen.voices):
        return engine.mixture(MixtureOptions(total=1.0)).mixture
    most = max(map(sum, chosen.mixture.vectors))
    if most:
        return scaled(chosen.mixture, 1 / most)
    alone = _alone(chosen)
    return Mixture(
        tuple(alone), chosen.mixture.temperatures, ((*alone, *chosen.longest),) * len(chosen.mixture.matched)
    )


def scaled(mixture: Mixture, factor: float) -> Mixture:
    """The mixture with all weights but the base's multiplied."""
    return mixture.after(tuple(tuple(min(weight * factor, 1.0) for weight in each) for each in mixture.vectors))


def score_tokens(engine: Engine, documents: Sequence[str], options: EvalOptions) -> TokenScores:
    """One pass of each model over `documents`.

    Raises BusyError while a session is open, OptionError when the window exceeds the context and CorpusError for a
    text of fewer than two tokens.
    """
    require_room(engine, options)
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
    indexes = [index_scores(index.file, tokens, windows) for index in engine.indexes]
    n_bytes = sum(len(engine.base.piece(token)) for window in windows for token in tokens[window.scored : window.end])
    return TokenScores(windows, base, memories, n_bytes, len(tokens), indexes)


def require_room(engine: Engine, options: EvalOptions) -> None:
    """Raise BusyError while a session is open, and OptionError when the window exceeds the context."""
    engine.cells.require_idle()
    if options.window > engine.longest():
        raise OptionError("window", options.window, f"the context is {engine.longest()} tokens; use at most that")


def join_documents(engine: Engine, documents: Sequence[str]) -> list[int]:
    """Token ids of all documents, joined by EOS, with BOS first iff the vocabulary adds it."""
    base = engine.base
    tokens = [base.bos] if base.add_bos and base.bos >= 0 else []
    for index, document in enumerate(documents):
        if index and base.eos >= 0:
            tokens.append(base.eos)
        tokens += chain.from_iterable(in_pieces(document, base.encode))
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
            stats = [row_stats(row, length, temperature, context.model.path) for temperature in temperatures]
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
    if mean == -math.inf:  # an impossible token: weights of 1 after a match that went on otherwise
        return math.inf, math.nan
    with np.errstate(over="ignore"):  # a hopeless model's perplexity is infinite, not an error
        value = float(np.exp(-mean))
    counts = np.array([window.end - window.scored for window in windows])
    n = len(counts)
    if n < 2:
        return value, math.nan
    residuals = np.add.reduceat(log_probs, np.cumsum(counts) - counts) - mean * counts
    return value, value * math.sqrt(n / (n - 1) * float(residuals @ residuals)) / float(counts.sum())
