"""The online weight: how the mixture changes over tokens that are read. verify in sampling.py does it for sampled ones.

weights.SoftBayes states the rule. Knows nothing of rows: it is given what each model said of each token.
"""

from typing import NamedTuple

import numpy as np

from memdec_edge.mixture import kernels, reference
from memdec_edge.mixture.rows import Wide
from memdec_edge.mixture.weights import Mixture, SoftBayes


class Learned(NamedTuple):
    """What a mixture made of some tokens, and they of it."""

    log_probs: Wide  # of each token under the mixture that met it, nats, [tokens]
    weights: Wide  # of each model in that mixture, the base's first, [1 + memories, tokens]
    mixture: Mixture  # after the last token


def learn(mixture: Mixture, rule: SoftBayes, log_probs: Wide) -> Learned:
    """Run the rule over tokens in their order, from `mixture` on.

    log_probs: of each token under each model, the base's first, nats, float64 [1 + memories, tokens], maybe of no
    tokens; -inf where a model cannot give the token. A token that no model can give leaves the weights.

    Raises NumericsError for NaN and +inf; ValueError for other shapes and for a rule of another number of memories.
    """
    given = np.ascontiguousarray(log_probs, np.float64)
    mixed, path = np.empty(given.shape[-1]), np.empty_like(given)
    if not given.size:
        return Learned(mixed, path, mixture)
    try:
        weights = kernels.learn(mixture.weights, rule.numbers, given, mixed, path)
    except FloatingPointError:
        for column in given.T.tolist():
            reference.learn(mixture, rule, column)  # names the culprit
        raise
    return Learned(mixed, path, Mixture(weights, mixture.temperatures))
