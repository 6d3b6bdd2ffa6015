"""How much base, memories and indexes weigh in the mixture, and how they come to weigh more or less.

A voice is any of them. Pure arithmetic; knows nothing of rows and models.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from memdec_edge.errors import OptionError
from memdec_edge.mixture.rows import MAX_MEMORIES, N_CLASSES, TEMPERATURES
from memdec_edge.options import DEFAULT_LAMBDA, ETA, SHARE, check_range

SLACK = 1e-6  # by which weights may sum to more than 1: float32 weights of a GGUF do
LEAST_INITIAL = 0.02  # of each model, so that its first good tokens count
LEAST_MATCHED = 0.001  # of each voice after a match: 0.02 for short ones, which are mostly wrong, shows in written text
LEAST_WEIGHT = 1e-4  # of each model while weights learn; native/learn.h has the same
Vectors = tuple[tuple[float, ...], ...]  # weights by class of match length; of class 0 without the indexes


@dataclass(frozen=True, slots=True)
class Mixture:
    """A lambda, resolved: the weights of memories and indexes. The base has the rest of the weight.

    weights: of the memories where no index has a match, 0 to 1 each, their sum at most 1. temperatures: 1e-4 to 1e4,
    they divide the memories' logits. matched: after a match, by the class of the longest match's length, from 1 on: of
    the memories, then of the indexes; empty without indexes.
    Raises OptionError for other numbers, for tuples of different lengths and for more than MAX_MEMORIES voices.
    """

    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    matched: Vectors = ()

    def __post_init__(self) -> None:
        if len(self.temperatures) != len(self.weights):
            raise OptionError("temperatures", self.temperatures, f"must be one for each of {self.weights}")
        if self.matched and {len(vector) for vector in self.matched} != {len(self.weights) + self.n_indexes}:
            raise OptionError("matched", self.matched, "must have as many weights for each class")
        if len(self.matched) not in (0, N_CLASSES - 1):
            raise OptionError("matched", self.matched, f"must have weights for each of {N_CLASSES - 1} classes")
        for temperature in self.temperatures:
            check_range("temperature", temperature, *TEMPERATURES)
        for vector in self.vectors:
            self._check(vector)

    @staticmethod
    def _check(vector: tuple[float, ...]) -> None:
        if len(vector) > MAX_MEMORIES:
            raise OptionError("memories", len(vector), f"must be at most {MAX_MEMORIES}; mix fewer")
        for weight in vector:
            check_range("weight", weight, 0.0, 1.0)
        total = sum(vector)
        if total > 1 + SLACK:
            shown = " + ".join(f"{weight:g}" for weight in vector)
            raise OptionError("the sum of the memories' lambdas", f"{shown} = {total:g}", "must be at most 1")

    @property
    def vectors(self) -> Vectors:
        """The weights of every class, from class 0 on."""
        return (self.weights, *self.matched)

    @property
    def n_indexes(self) -> int:
        """How many indexes it mixes."""
        return len(self.matched[0]) - len(self.weights) if self.matched else 0

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights of all voices where no index has a match, the base's first; they sum to 1."""
        return self.at((0,) * self.n_indexes)

    def at(self, classes: Sequence[int]) -> tuple[float, ...]:
        """The weights of all voices after a match: of base, memories and indexes; they sum to 1.

        classes: of each index's match, 0 where it has none. The longest match decides which weights count. An index
        without a match is silent: its weight is 0, and the others share it.
        """
        longest = max(classes, default=0)
        shares, first = shares_of(self.vectors[longest]), 1 + len(self.weights)
        spoken = [share for share, klass in zip(shares[first:], classes, strict=False) if klass]
        if not longest or len(spoken) == len(classes):
            return shares if longest else (*shares, *(0.0,) * len(classes))
        awake = [
            *shares[:first],
            *(share if klass else 0.0 for share, klass in zip(shares[first:], classes, strict=True)),
        ]
        total = sum(awake)
        return tuple(share / total for share in awake) if total > 0 else (1.0, *(0.0,) * (len(awake) - 1))

    def after(self, vectors: Vectors) -> "Mixture":
        """The same voices with other weights, which are a mixture; nothing is checked, since each token calls it."""
        twin = object.__new__(Mixture)
        for name, value in (("weights", vectors[0]), ("temperatures", self.temperatures), ("matched", vectors[1:])):
            object.__setattr__(twin, name, value)
        return twin


@dataclass(frozen=True, slots=True)
class SoftBayes:
    """How the weights of all voices learn online, from each token (Orseau, Lattimore and Legg 2017):

        w_i <- (1 - share) w_i (1 - eta + eta p_i / p_mix) + share initial_i        p_mix = sum_i w_i p_i

    p_i is what voice i gave to the token, at its temperature and over its whole row. The sum of the weights stays 1.
    Only the weights of one class learn from a token, those that it met (see Mixture.at). A silent index keeps its
    weight, as a sleeping expert does (Freund, Schapire, Singer and Warmuth 1997).

    initial, matched: as Mixture.weights and Mixture.matched; each voice at least LEAST_INITIAL, after a match at least
    LEAST_MATCHED (see lifted). eta: 0 to 1, how fast the weights follow; 0: they stay as they are; 1, without share:
    Bayes' rule. share: 0 to 1, how much of the weights returns to the first ones with each token; a model that was bad
    for long is then soon back. Raises OptionError for other numbers.
    """

    initial: tuple[float, ...]
    eta: float = ETA
    share: float = SHARE
    matched: Vectors = ()

    def __post_init__(self) -> None:
        check_range("eta", self.eta, 0.0, 1.0)
        check_range("share", self.share, 0.0, 1.0)
        for least, vector in zip(_leasts(self.vectors), self.vectors, strict=True):
            for weight in shares_of(vector):
                check_range("initial weight", round(weight, 6), least, 1.0)  # 1 - 0.98 is a little less

    def at(self, eta: float) -> "SoftBayes":
        """The same rule at another rate: `share` changes in proportion, so 0 freezes the weights."""
        return replace(self, eta=eta, share=self.share * eta / self.eta if self.eta else 0.0)

    @property
    def vectors(self) -> Vectors:
        """The initial weights of every class, from class 0 on."""
        return (self.initial, *self.matched)

    @property
    def numbers(self) -> tuple[Vectors, float, float]:
        """What native/ takes."""
        return self.vectors, self.eta, self.share


def shares_of(weights: tuple[float, ...]) -> tuple[float, ...]:
    """The weights of all models from those of the memories: the base, first, has the rest."""
    return (max(0.0, 1.0 - sum(weights)), *weights)


def lifted(vectors: Vectors) -> Vectors:
    """Weights of every class, from class 0 on, with which SoftBayes may begin: too small ones are lifted."""
    return tuple(lift(shares_of(vector), least) for least, vector in zip(_leasts(vectors), vectors, strict=True))


def _leasts(vectors: Vectors) -> tuple[float, ...]:
    """The least weight with which a voice begins, by class."""
    return (LEAST_INITIAL, *(LEAST_MATCHED,) * (len(vectors) - 1))


def lift(shares: Sequence[float], least: float) -> tuple[float, ...]:
    """The memories' weights, [memories], after no model's is below `least`, from those of all models.

    What exceeds `least` is scaled so that the sum is 1 again. shares: [1 + memories], about 1 in sum, the base's first.
    """
    excess = [max(share - least, 0.0) for share in shares]
    factor = (1.0 - least * len(shares)) / sum(excess)
    return tuple(least + factor * part for part in excess[1:])


def mixture_weights(
    recommended: Sequence[float | None], literal: Sequence[float | None], total: float | None
) -> list[float]:
    """One lambda for each memory; whether they make a mixture, Mixture checks.

    `recommended`: what each memory's GGUF recommends (None: DEFAULT_LAMBDA); `literal`: weights that the user gave for
    one memory (None: not given), taken as they are; `total`: the weight of the other memories together, split in the
    ratio of their recommendations. Without `total` the recommendations are scaled so that their sum does not exceed
    the largest of them. Raises OptionError for a total outside [0, 1] and for one that no memory can carry.
    """
    if total is not None:
        check_range("total", total, 0.0, 1.0)
    shares = [DEFAULT_LAMBDA if share is None else share for share in recommended]
    free = [share for share, given in zip(shares, literal, strict=True) if given is None]
    if total is not None and not literal:
        raise OptionError("total", total, "there is no memory to weigh; give at least one")
    if total is not None and not free:
        raise OptionError("total", total, "every memory has a weight of its own; leave one out")
    wanted = total if total is not None else max(free, default=0.0)
    if not sum(free):  # every recommendation is 0: equal parts
        shares = [1.0] * len(shares)
    whole = sum(share for share, given in zip(shares, literal, strict=True) if given is None)
    return [wanted * (share / whole) if given is None else given for share, given in zip(shares, literal, strict=True)]


def best_lambda(sweep: Mapping[float, float]) -> float:
    """The lambda of the lowest perplexity in a sweep over lambda, the smallest of several; NaN is never the lowest."""
    return min(sweep, key=lambda value: (math.isnan(sweep[value]), sweep[value], value))
