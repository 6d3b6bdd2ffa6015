"""The sampler chain against the distribution that NumPy computes."""

from contextlib import closing

import numpy as np
import pytest

from memdec_edge.errors import NumericsError
from memdec_edge.llama.sampler import Sampler
from memdec_edge.options import SamplingOptions

ROW = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -np.inf], np.float32)


def sampler(**options: object) -> closing[Sampler]:
    return closing(Sampler(SamplingOptions(**options), None, len(ROW), 64))  # type: ignore[arg-type]


def test_greedy_takes_the_largest_and_leaves_the_row_alone() -> None:
    row = ROW.copy()
    with sampler(temperature=0.0) as chain:
        assert chain.sample(row, 0) == 0
        assert chain.sample(row, 0, np.array([0], np.int32)) == 1
    np.testing.assert_array_equal(row, ROW)


def test_the_repeat_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    with sampler(temperature=0.0, repeat_penalty=4.0) as chain:
        chain.accept(0)
        assert chain.sample(ROW, 0) == 1  # 2 / 4 < 1
    negative = np.array([-1.0, -1.5], np.float32)
    with closing(Sampler(SamplingOptions(temperature=0.0, repeat_penalty=2.0), None, 2, 64)) as chain:
        chain.accept(0)
        assert chain.sample(negative, 0) == 1  # -1 * 2 < -1.5


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    with sampler(temperature=0.7, top_k=0, top_p=1.0, min_p=0.0, seed=1) as chain:
        counts = np.bincount([chain.sample(ROW, i) for i in range(20_000)], minlength=len(ROW))
    expected = np.exp(ROW.astype(np.float64) / 0.7)
    expected *= counts.sum() / expected.sum()
    assert counts[-1] == 0
    seen = expected > 0
    g = 2 * np.sum(counts[seen] * np.log(counts[seen] / expected[seen]))
    assert g < 13.28  # chi-square, 4 degrees of freedom, alpha 0.01


def test_top_k_top_p_and_min_p_keep_what_they_say() -> None:
    for options, kept in (
        ({"top_k": 2, "top_p": 1.0, "min_p": 0.0}, {0, 1}),
        ({"top_k": 0, "top_p": 0.5, "min_p": 0.0}, {0}),
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.2}, {0, 1, 2}),
    ):
        with sampler(temperature=1.0, seed=3, **options) as chain:
            assert {chain.sample(ROW, i) for i in range(500)} == kept


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 2])
def test_a_seed_gives_one_series_and_zero_is_a_seed(seed: int) -> None:
    series = []
    for _ in range(2):
        with sampler(temperature=1.5, seed=seed, min_p=0.0) as chain:
            assert chain.seed == seed
            series.append([chain.sample(ROW, i) for i in range(50)])
    assert series[0] == series[1]


def test_without_a_seed_each_sampler_has_its_own() -> None:
    with sampler() as one, sampler() as other:
        assert one.seed != other.seed


def test_a_row_in_which_everything_is_suppressed_has_no_sample() -> None:
    for temperature in (0.0, 1.0):
        with sampler(temperature=temperature, seed=0) as chain, pytest.raises(NumericsError, match="no token is poss"):
            chain.sample(ROW, 0, np.arange(len(ROW), dtype=np.int32))


def test_what_was_taken_back_is_forgotten_and_what_is_replayed_counts_again() -> None:
    with sampler(temperature=0.0, repeat_penalty=5.0) as chain:
        chain.accept(0)
        chain.accept(1)
        assert chain.sample(ROW, 0) == 2  # 2 / 5 and 1 / 5 stand against 0.5
        for replayed, sample in (([1], 0), ([0], 1), ([1, 0], 2), ([], 0)):
            chain.replay(replayed)
            assert chain.sample(ROW, 0) == sample


def test_penalties_look_back_as_far_as_they_are_told() -> None:
    with sampler(temperature=0.0, repeat_penalty=4.0, repeat_last_n=2) as chain:
        for token in (0, 2, 3):
            chain.accept(token)
        assert chain.sample(ROW, 0) == 0
        chain.accept(0)
        assert chain.sample(ROW, 0) == 1


def test_a_fork_goes_on_by_itself_with_the_same_draws_or_with_others() -> None:
    with sampler(temperature=1.5, min_p=0.0, seed=5, presence_penalty=2.0) as chain:
        chain.accept(0)
        with closing(chain.fork()) as twin, closing(chain.fork(6)) as other:
            draws = [[each.sample(ROW, i) for i in range(60)] for each in (chain, twin, other)]
            assert draws[0] == draws[1] != draws[2]
            chain.accept(1)  # 1 - 2 is too little for the greedy eye, and concerns nobody else
            assert [twin.sample(ROW, i) for i in range(60)] == draws[1]
            assert [chain.sample(ROW, i) for i in range(60)] != draws[0]
