"""Fixed share against a sum over all sequences of experts, which is what it computes step by step."""

from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import pytest

from memdec_edge.evaluation.experts import fixed_share


def by_all_sequences(experts: npt.NDArray[np.float64], share: float) -> float:
    """The probability of all tokens: each expert stays with 1 - share, and with share any of all follows."""
    n, n_tokens = experts.shape
    total = 0.0
    for sequence in product(range(n), repeat=n_tokens):
        probability = 1 / n
        for one, next_one in pairwise(sequence):
            probability *= (1 - share) * (one == next_one) + share / n
        total += probability * np.exp(sum(experts[expert, at] for at, expert in enumerate(sequence)))
    return float(np.log(total))


@pytest.mark.parametrize("share", [0.0, 0.002, 0.3, 1.0])
def test_fixed_share_is_the_sum_over_all_sequences_of_experts(share: float) -> None:
    experts = -np.random.default_rng(1).exponential(2.0, (3, 6))
    experts[1, 2] = -np.inf
    log_probs, log_weights = fixed_share(experts, share)
    for n_tokens in (1, 3, 6):
        expected = by_all_sequences(experts[:, :n_tokens], share)
        assert log_probs[:n_tokens].sum() == pytest.approx(expected, rel=1e-12)
    assert np.exp(log_weights).sum() == pytest.approx(1)


def test_the_weights_afterwards_are_those_that_meet_the_next_token() -> None:
    experts = -np.random.default_rng(2).exponential(2.0, (4, 9))
    whole, _ = fixed_share(experts, 0.05)
    _, log_weights = fixed_share(experts[:, :8], 0.05)
    assert np.logaddexp.reduce(log_weights + experts[:, 8]) == pytest.approx(whole[8])
