"""What the online weight promises of whole texts: no drift in the mean, little harm where a memory does not help."""

import math

import numpy as np
import pytest

from memdec_edge.mixture.online import learn
from memdec_edge.mixture.weights import SoftBayes, shares_of
from tests.mixture.test_online import even, mixture_with


@pytest.mark.parametrize(("worse", "noise", "cost"), [(0.1, 0.8, 0.0), (0.7, 1.0, 0.02), (50.0, 0.0, 0.02)])
def test_a_memory_that_does_not_help_costs_a_fiftieth_at_most(worse: float, noise: float, cost: float) -> None:
    """worse: nats that it loses on average. 0.1 is that of a real one on general text, 50 that of a broken one."""
    rng = np.random.default_rng(3)
    base = -rng.exponential(2.7, 6000)
    log_probs = np.stack([base, np.minimum(base - rng.normal(worse, noise, 6000), 0.0)])
    found = learn(mixture_with((0.5,)), SoftBayes((0.5,)), log_probs)
    assert (base - found.log_probs)[500:].mean() < cost
    assert (found.mixture.weights[0] < 0.1) == (worse > 0.5)  # run then says that the memory does not help


@pytest.mark.parametrize("n_memories", [1, 3, 8])
def test_over_many_generated_tokens_the_weights_keep_their_mean_without_share(n_memories: int) -> None:
    """Single runs go their ways, most of them far from where they began; with share they come back."""
    rng, n_runs, n_tokens = np.random.default_rng(n_memories), 250, 40
    start = np.array(shares_of(even(n_memories)))
    ends = {share: np.empty((n_runs, 1 + n_memories)) for share in (0.0, 0.1)}
    for share, found in ends.items():
        rule = SoftBayes(even(n_memories), 0.3, share)
        for run in range(n_runs):
            mixture = mixture_with(even(n_memories))
            for _ in range(n_tokens):
                models = rng.dirichlet(np.full(6, 0.5), 1 + n_memories)  # distributions, [models, vocabulary]
                p = np.array(mixture.shares) @ models
                token = rng.choice(6, p=p / p.sum())
                mixture = learn(mixture, rule, np.log(models[:, token : token + 1])).mixture
            found[run] = mixture.shares
    error = ends[0.0].std(0) / math.sqrt(n_runs)
    assert (np.abs(ends[0.0].mean(0) - start) < 4 * error).all()
    assert ends[0.0].std() > 1.3 * ends[0.1].std()
