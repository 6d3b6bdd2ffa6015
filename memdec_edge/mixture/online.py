"""The online weight: how the mixture changes over tokens that are read. verify in sampling.py does it for sampled ones.

weights.SoftBayes states the rule. Knows nothing of rows: it is given what each voice said of each token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from memdec_edge.mixture import kernels, reference
from memdec_edge.mixture.rows import Ids, Sampled, Wide
from memdec_edge.mixture.weights import Mixture, SoftBayes, lifted


class Learned(NamedTuple):
    """What a mixture made of some tokens, and they of it."""

    log_probs: Wide  # of each token under the mixture that met it, nats, [tokens]
    weights: Wide  # of each voice in that mixture, the base's first, [1 + memories + indexes, tokens]
    mixture: Mixture  # after the last token


def learn(mixture: Mixture, rule: SoftBayes, log_probs: Wide, classes: Ids | None = None) -> Learned:
    """Run the rule over tokens in their order, from `mixture` on.

    log_probs: of each token under each voice (base, memories, indexes), nats, float64 [1 + memories + indexes, tokens],
    maybe of no tokens; -inf where a voice cannot give the token. A token that no voice can give leaves the weights.
    classes: of each index's match before each token, int32 [indexes, tokens], 0: none; None without indexes.

    Raises NumericsError for NaN and +inf; ValueError for other shapes and for a rule of another number of voices.
    """
    given = np.ascontiguousarray(log_probs, np.float64)
    mixed, path = np.empty(given.shape[-1]), np.empty_like(given)
    if not given.size:
        return Learned(mixed, path, mixture)
    if classes is None:
        classes = np.zeros((0, given.shape[-1]), np.int32)
    try:
        vectors = kernels.learn(mixture.vectors, rule.numbers, given, mixed, path, classes)
    except FloatingPointError:
        for column, matched in zip(given.T.tolist(), classes.T.tolist(), strict=True):
            reference.learn(mixture, rule, column, matched)  # names the culprit
        raise
    return Learned(mixed, path, mixture.after(vectors))


def hold(mixture: Mixture, log_probs: Wide, classes: Ids | None = None) -> Learned:
    """As learn(), of weights that stay."""
    initial, *matched = lifted(mixture.vectors)  # which a rate of 0 ignores
    return learn(mixture, SoftBayes(initial, 0.0, 0.0, tuple(matched)), log_probs, classes)


def learn_from(mixture: Mixture, rule: SoftBayes, sample: Sampled, classes: Sequence[int]) -> Mixture:
    """The mixture after one sampled token; classes: of each index's match before it."""
    column = np.array(sample.log_probs)[:, None]
    return learn(mixture, rule, column, np.array(classes, np.int32)[:, None]).mixture
