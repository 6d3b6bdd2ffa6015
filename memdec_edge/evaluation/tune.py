"""What a user's text adds to weights that learn: temperature, first weight, eta and share for one memory.

Two texts, one of the memory's domain and a general one, are cut in two halves each. A grid search on the first halves
chooses; the second halves decide whether the choice beats the defaults by more than its standard error. The same goes
for a fixed lambda on the domain's text. The table beside it says what other ways reach on the second halves. Knows
nothing of terminals.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdec_edge.engine import Engine
from memdec_edge.errors import CorpusError, OptionError
from memdec_edge.evaluation.experts import fixed_share
from memdec_edge.evaluation.perplexity import join_documents, mix, perplexity, require_room, token_scores
from memdec_edge.evaluation.windows import Window, slide, thin
from memdec_edge.gguf import metadata
from memdec_edge.mixture.online import learn
from memdec_edge.mixture.weights import LEAST_INITIAL, Mixture, SoftBayes
from memdec_edge.options import DEFAULT_LAMBDA, ETA, INITIAL_LAMBDA, LAMBDAS, SHARE, EvalOptions
from memdec_edge.progress import progress

Wide = npt.NDArray[np.float64]
TEMPERATURES = (1.0, 0.7, 0.8, 0.9, 1.1, 1.25, 1.5)
INITIALS = (INITIAL_LAMBDA, 0.2, 0.35, 0.65, 0.8)
ETAS = (ETA, 0.02, 0.1)
SHARES = (SHARE, 0.0005, 0.005)
BUCKETS = 8
FEW, LEAST_WINDOW = 8, 64  # a text of fewer windows gets smaller ones, down to LEAST_WINDOW tokens


@dataclass(frozen=True)
class Rule:
    """A memory's temperature and how its weight learns."""

    temperature: float = TEMPERATURES[0]
    initial: float = INITIALS[0]
    eta: float = ETAS[0]
    share: float = SHARES[0]


@dataclass(frozen=True)
class Tuning:
    """`rule` is better than `default` on text that did not choose it, or is `default` where nothing is.

    default: what holds without tuning; it begins with the lambda that the file recommends, if it does. fixed: the best
    fixed lambda of the domain's text, if it beats the recommended one there, else that. gain: nats a token by which the
    chosen rule beats the default on the second halves, the mean of both texts, and its standard error. table: way ->
    perplexity of each text's second half. tokens: scored in both texts.
    """

    rule: Rule
    default: Rule
    fixed: float
    gain: float
    standard_error: float
    table: dict[str, dict[str, float]]
    tokens: int


@dataclass(frozen=True)
class Half:
    """One half of a text: base log-probs [tokens], the memory's by temperature [temperatures, tokens], entropies."""

    base: Wide
    memory: Wide
    entropies: Wide  # of the memory's rows, nats
    windows: list[Window]

    def at(self, temperature: float) -> Wide:
        """The memory's log-probs at one of TEMPERATURES."""
        found: Wide = self.memory[TEMPERATURES.index(temperature)]
        return found

    def online(self, rule: Rule) -> Wide:
        """Log-probs of the mixture whose weights learn by `rule`."""
        numbers = SoftBayes((rule.initial,), rule.eta, rule.share)
        columns = np.stack([self.base, self.at(rule.temperature)])
        return learn(Mixture((rule.initial,), (rule.temperature,)), numbers, columns).log_probs

    def fixed(self, weight: float, temperature: float = 1.0) -> Wide:
        """Log-probs of the mixture with a fixed weight of the memory."""
        return mix([self.base, self.at(temperature)], [1 - weight, weight])


def tune(engine: Engine, domain: Sequence[str], general: Sequence[str], options: EvalOptions | None = None) -> Tuning:
    """Tune the one memory of `engine` on documents of its domain and on general ones.

    A text of few windows is cut into smaller ones. Raises OptionError unless the engine has one memory and no index,
    CorpusError for a text of fewer than four windows, and as score_tokens().
    """
    options = options or EvalOptions()
    if engine.indexes:
        raise OptionError("memory", engine.indexes[0].path, "an index has nothing to tune: its weights follow the text")
    if len(engine.memories) != 1:
        raise OptionError("memory", f"given {len(engine.memories)} times", "one memory is tuned at a time")
    require_room(engine, options)
    texts = {"domain": domain, "general": general}
    halves = {name: _halves(engine, name, documents, options) for name, documents in texts.items()}
    first, second = ({name: pair[index] for name, pair in halves.items()} for index in (0, 1))
    recommended = engine.memories[0].metadata.weight
    begin = INITIAL_LAMBDA if recommended is None else min(max(recommended, LEAST_INITIAL), 1 - LEAST_INITIAL)
    default = Rule(initial=begin)
    chosen = _search(default, list(first.values()))
    gain, error = _gain([(half.online(chosen), half.online(default), half.windows) for half in second.values()])
    rule = chosen if gain > error else default
    fixed, before = _best(first["domain"], rule.temperature), DEFAULT_LAMBDA if recommended is None else recommended
    ways = _rows(first, second, chosen, default)
    half = second["domain"]
    fixed_gain, fixed_error = _gain(
        [(half.fixed(fixed, rule.temperature), half.fixed(before, rule.temperature), half.windows)]
    )
    tokens = sum(len(half.base) for pair in halves.values() for half in pair)
    return Tuning(rule, default, fixed if fixed_gain > fixed_error else before, gain, error, ways, tokens)


def keep(memory: Path, found: Tuning) -> list[str]:
    """Write what was found into a memory's GGUF, in place; warnings for a person.

    A file of schema 1 has no place for the numbers of a weight that learns, and keeps lambda and temperature alone.
    Raises as metadata.patch().
    """
    rule = found.rule
    values = {metadata.LAMBDA: found.fixed, metadata.TEMPERATURE: rule.temperature}
    online = dict(zip(metadata.ONLINE, (rule.initial, rule.eta, rule.share), strict=True))
    scalars, _ = metadata.read(memory)
    if all(key in scalars for key in online):
        metadata.patch(memory, values | online)
        return []
    metadata.patch(memory, values)
    return [f"{memory} has no place for how its weight learns; convert it again to keep that too"]


def _halves(engine: Engine, name: str, documents: Sequence[str], options: EvalOptions) -> tuple[Half, Half]:
    """Both halves of a text, in its order, from one pass of base and memory."""
    [memory], tokens = engine.memories, join_documents(engine, documents)
    windows = _windows(name, len(tokens), options)
    with progress(f"{name} text", 2 * sum(window.end - window.scored for window in windows)) as advance:
        [base], _ = token_scores(engine.context, tokens, windows, advance)
        n_vocab = engine.base.n_vocab
        log_probs, entropies = token_scores(memory.context, tokens, windows, advance, TEMPERATURES, n_vocab)
    middle = len(windows) // 2
    cut = sum(window.end - window.scored for window in windows[:middle])
    return (
        Half(base[:cut], log_probs[:, :cut], entropies[:cut], windows[:middle]),
        Half(base[cut:], log_probs[:, cut:], entropies[cut:], windows[middle:]),
    )


def _windows(name: str, n_tokens: int, options: EvalOptions) -> list[Window]:
    """Windows over a text: FEW at least where LEAST_WINDOW tokens allow, since they are the units of the errors."""
    window, stride = options.window, options.stride
    while True:
        windows = thin(slide(n_tokens, window, stride), options.max_tokens) if n_tokens > 1 else []
        if len(windows) >= FEW or window // 2 < LEAST_WINDOW:
            break
        window, stride = window // 2, max(stride // 2, 1)
    if len(windows) < 4:
        few = f"{n_tokens} tokens are fewer than four windows of {window}"
        raise CorpusError(f"the {name} text", f"{few}; give a longer one")
    return windows


def _search(default: Rule, halves: list[Half]) -> Rule:
    """The rule with the least loss, the mean of all halves; of equal ones the first, which is the default."""
    rules = [default, *(Rule(*values) for values in product(TEMPERATURES, INITIALS, ETAS, SHARES))]
    return max(rules, key=lambda rule: float(np.mean([half.online(rule).mean() for half in halves])))


def _gain(pairs: list[tuple[Wide, Wide, list[Window]]]) -> tuple[float, float]:
    """Nats a token by which one way beats another, the mean of all texts, and its standard error.

    pairs: of each text the log-probs of both ways, [tokens], and its windows.
    """
    gains, variances = [], []
    for one, other, windows in pairs:
        ratio, error = perplexity(one - other, windows)  # exp(-mean), and its error
        gains.append(-float(np.log(ratio)))
        variances.append((error / ratio) ** 2)
    return float(np.mean(gains)), float(np.sqrt(sum(variances)) / len(pairs))


def _best(half: Half, temperature: float = 1.0) -> float:
    """The fixed weight with the least loss."""
    return max(LAMBDAS, key=lambda weight: float(half.fixed(weight, temperature).mean()))


def _rows(first: dict[str, Half], second: dict[str, Half], chosen: Rule, default: Rule) -> dict[str, dict[str, float]]:
    """Perplexities of the second halves, by way and text. A way that is fitted was fitted on the first halves."""
    bucketed, fixed, table = _bucketed(list(first.values())), _best(first["domain"]), dict[str, dict[str, float]]()
    for name, half in second.items():
        ways = {
            "base": half.base,
            "memory alone": half.at(1.0),
            "fixed lambda, the best of the domain": half.fixed(fixed),
            "best fixed lambda of each half, an oracle": half.fixed(_best(half)),
            "lambda by the memory's entropy": bucketed(half),
            "eleven lambdas under fixed share": fixed_share(np.stack([half.fixed(n / 10) for n in range(11)]), SHARE)[
                0
            ],
            "online, default": half.online(default),
            "online, tuned": half.online(chosen),
            "better model of each token": np.maximum(half.base, half.at(1.0)),
        }
        for way, log_probs in ways.items():
            table.setdefault(way, {})[name] = float(np.exp(-log_probs.mean()))
    return table


def _bucketed(halves: list[Half]) -> Callable[[Half], Wide]:
    """A lambda for each bucket of the memory's entropy, fitted on `halves`, as Drozdov et al. do (2210.15859)."""
    edges = np.quantile(np.concatenate([half.entropies for half in halves]), np.arange(1, BUCKETS) / BUCKETS)

    def loss(bucket: int, weight: float) -> float:
        inside = [np.digitize(half.entropies, edges) == bucket for half in halves]
        return -sum(float(half.fixed(weight)[mine].sum()) for half, mine in zip(halves, inside, strict=True))

    best = [min(LAMBDAS, key=partial(loss, bucket)) for bucket in range(BUCKETS)]

    def mixed(half: Half) -> Wide:
        where = np.digitize(half.entropies, edges)
        return np.choose(where, np.stack([half.fixed(weight) for weight in best]))

    return mixed
