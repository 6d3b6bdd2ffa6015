"""What a user's text adds to weights that learn: temperature, first weight, eta and share for one memory.

Two texts, one of the memory's domain and a general one, are cut in two halves each. A grid search on the first halves
chooses; the second halves decide whether the choice beats the defaults by more than its standard error. The table
beside it says what other ways reach on the second halves. Knows nothing of terminals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdec_edge.engine import Engine
from memdec_edge.errors import CorpusError, OptionError
from memdec_edge.evaluation.perplexity import join_documents, mix, perplexity, token_scores
from memdec_edge.evaluation.windows import Window, slide, thin
from memdec_edge.gguf import metadata
from memdec_edge.mixture.online import learn
from memdec_edge.mixture.weights import Mixture, SoftBayes
from memdec_edge.options import ETA, INITIAL_LAMBDA, LAMBDAS, SHARE, EvalOptions
from memdec_edge.progress import progress

Wide = npt.NDArray[np.float64]
TEMPERATURES = (1.0, 0.7, 0.8, 0.9, 1.1, 1.25, 1.5)
INITIALS = (INITIAL_LAMBDA, 0.2, 0.35, 0.65, 0.8)
ETAS = (ETA, 0.02, 0.1)
SHARES = (SHARE, 0.0005, 0.005)
BUCKETS = 8


@dataclass(frozen=True)
class Rule:
    """A memory's temperature and how its weight learns."""

    temperature: float = TEMPERATURES[0]
    initial: float = INITIALS[0]
    eta: float = ETAS[0]
    share: float = SHARES[0]


@dataclass(frozen=True)
class Tuning:
    """`rule` is better than the defaults on text that did not choose it, or is the defaults where nothing is.

    fixed: the best fixed lambda of the domain text. gain: nats a token by which the chosen rule beats the defaults on
    the second halves, the mean of both texts, and its standard error. table: way -> perplexity of each text's second
    half. tokens: scored in both texts.
    """

    rule: Rule
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

    Raises OptionError unless the engine has one memory and no index, BusyError while a session is open, CorpusError for
    a text of fewer than four windows, and as score_tokens().
    """
    options = options or EvalOptions()
    if engine.indexes:
        raise OptionError("memory", engine.indexes[0].path, "an index has nothing to tune: its weights follow the text")
    if len(engine.memories) != 1:
        raise OptionError("memory", f"given {len(engine.memories)} times", "one memory is tuned at a time")
    texts = {"domain": domain, "general": general}
    halves = {name: _halves(engine, name, documents, options) for name, documents in texts.items()}
    first, second = ({name: pair[index] for name, pair in halves.items()} for index in (0, 1))
    chosen = _search(list(first.values()))
    gain, error = _gain(chosen, list(second.values()))
    table = {name: _rows(first[name], second[name], chosen) for name in texts}
    ways = {way: {name: table[name][way] for name in texts} for way in table["domain"]}
    tokens = sum(len(half.base) for pair in halves.values() for half in pair)
    rule = chosen if gain > error else Rule()
    return Tuning(rule, _best(first["domain"], rule.temperature), gain, error, ways, tokens)


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
    engine.cells.require_idle()
    [memory], tokens = engine.memories, join_documents(engine, documents)
    windows = thin(slide(len(tokens), options.window, options.stride), options.max_tokens) if len(tokens) > 1 else []
    if len(windows) < 4:
        few = f"{len(tokens)} tokens are fewer than four windows of {options.window}"
        raise CorpusError(f"the {name} text", f"{few}; give a longer one, or a smaller window")
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


def _search(halves: list[Half]) -> Rule:
    """The rule with the least loss, the mean of all halves; of equal ones the first, which is the defaults'."""
    rules = [Rule(*values) for values in product(TEMPERATURES, INITIALS, ETAS, SHARES)]
    return max(rules, key=lambda rule: float(np.mean([half.online(rule).mean() for half in halves])))


def _gain(rule: Rule, halves: list[Half]) -> tuple[float, float]:
    """Nats a token by which a rule beats the defaults, the mean of all halves, and its standard error."""
    gains, variances = [], []
    for half in halves:
        difference = half.online(rule) - half.online(Rule())
        ratio, error = perplexity(difference, half.windows)  # exp(-mean), and its error
        gains.append(-float(np.log(ratio)))
        variances.append((error / ratio) ** 2)
    return float(np.mean(gains)), float(np.sqrt(sum(variances)) / len(halves))


def _best(half: Half, temperature: float = 1.0) -> float:
    """The fixed weight with the least loss."""
    return max(LAMBDAS, key=lambda weight: float(half.fixed(weight, temperature).mean()))


def _rows(first: Half, second: Half, chosen: Rule) -> dict[str, float]:
    """Perplexities of a text's second half, by way. A way that is fitted to the text was fitted on its first half."""
    found = {
        "base": second.base,
        "memory alone": second.at(1.0),
        "best fixed lambda of this text": second.fixed(_best(first)),
        "lambda by the memory's entropy": _bucketed(first, second),
        "online, defaults": second.online(Rule()),
        "online, tuned": second.online(chosen),
        "better model of each token": np.maximum(second.base, second.at(1.0)),
    }
    return {way: float(np.exp(-log_probs.mean())) for way, log_probs in found.items()}


def _bucketed(first: Half, second: Half) -> Wide:
    """A lambda for each bucket of the memory's entropy, in the manner of Drozdov et al. (2210.15859)."""
    edges = np.quantile(first.entropies, np.arange(1, BUCKETS) / BUCKETS)
    inside, where = np.digitize(first.entropies, edges), np.digitize(second.entropies, edges)
    out = np.empty(len(second.base))
    for bucket in range(BUCKETS):
        mine = inside == bucket
        best = max(LAMBDAS, key=lambda weight: float(first.fixed(weight)[mine].sum()))
        out[where == bucket] = second.fixed(best)[where == bucket]
    return out
