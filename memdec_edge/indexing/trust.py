"""How far a match is to be trusted by its length, measured on documents that the index does not hold.

The trust of a class of match length is the mean probability that the index gives to the token which really follows,
divided by that of the longest class: the index's weight there in a fixed mixture, relative to the longest class. It is
1 for that one, and never falls with the length. Knows nothing of files, and of weights that learn.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdec_edge.gguf.index_file import Positions, Tokens
from memdec_edge.mixture.match import CLASSES, Matcher, class_of

# The mean probability of the right token on held-out medicine and licences, where few documents say more.
USUAL = (0.12, 0.20, 0.32, 0.37, 0.50, 0.60, 0.70, 0.90)
WEIGHT_OF_USUAL = 20  # tokens of a class that count as much as USUAL does
MOST_MEASURED = 50_000  # tokens; a second or so


@dataclass
class Part:
    """An index in memory: what mixture.match.Index wants."""

    tokens: Tokens
    prefixes: Positions
    n_vocab: int

    def check_whole(self) -> None:
        """Memory is not cut short."""


def measured_trust(index: Part, documents: Iterable[Tokens]) -> npt.NDArray[np.float32]:
    """Trust by class, from documents that `index` does not hold; of the first MOST_MEASURED tokens of them."""
    counts, sums = np.zeros(len(CLASSES)), np.zeros(len(CLASSES))
    for length, probability in _scored(index, documents):
        if found := class_of(length):
            counts[found - 1] += 1
            sums[found - 1] += probability
    weights = counts + WEIGHT_OF_USUAL
    return rising((sums + WEIGHT_OF_USUAL * np.array(USUAL)) / weights, weights)


def rising(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The nearest values that never fall, in weighted squares (pool adjacent violators), divided by the last."""
    groups: list[tuple[float, float, int]] = []  # value, weight, how many it stands for
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        count = 1
        while groups and groups[-1][0] >= value:
            before, its_weight, its_count = groups.pop()
            value = (value * weight + before * its_weight) / (weight + its_weight)
            weight, count = weight + its_weight, count + its_count
        groups.append((value, weight, count))
    risen = np.concatenate([np.full(count, value) for value, _, count in groups])
    trust: npt.NDArray[np.float32] = np.minimum(risen / risen[-1], 1).astype(np.float32)
    return trust


def _scored(index: Part, documents: Iterable[Tokens]) -> Iterator[tuple[int, float]]:
    """For each token after the first: the length of the match before it, and the probability that the index gave it."""
    n_measured = 0
    for document in documents:
        matcher = Matcher(index)
        for before, token in zip(document[:-1].tolist(), document[1:].tolist(), strict=True):
            matcher.extend([before])
            match = matcher.match()
            at = int(np.searchsorted(match.ids, token))
            known = at < len(match.ids) and match.ids[at] == token
            yield match.length, float(match.probs[at]) if known else 0.0
            n_measured += 1
            if n_measured == MOST_MEASURED:
                return
