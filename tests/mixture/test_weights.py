"""A mixture's numbers, and how a weight is split among several memories."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.errors import OptionError
from memdec_edge.mixture.weights import Mixture, best_lambda, mixture_weights

unit = st.floats(0, 1)


@pytest.mark.parametrize(
    ("weights", "temperatures", "error"),
    [
        ((-0.1,), (1.0,), r"weight is -0\.1: must be from 0 to 1"),
        ((0.2, 1.1), (1.0, 1.0), r"weight is 1\.1"),
        ((math.nan,), (1.0,), "weight is nan"),
        ((0.6, 0.5), (1.0, 1.0), r"the sum of the memories' lambdas is 0\.6 \+ 0\.5 = 1\.1: must be at most 1"),
        ((0.5,), (0.0,), "temperature is 0:"),
        ((0.5,), (-1.0,), "temperature is -1:"),
        ((0.5,), (math.inf,), "temperature is inf"),
        ((0.5,), (math.nan,), "temperature is nan"),
        ((0.5,), (), "temperatures is .*must be one for each"),
        ((0.0,) * 17, (1.0,) * 17, "memories is 17: must be at most 16"),
    ],
)
def test_numbers_that_are_no_mixture_are_refused_when_it_is_made(
    weights: tuple[float, ...], temperatures: tuple[float, ...], error: str
) -> None:
    with pytest.raises(OptionError, match=error):
        Mixture(weights, temperatures)


def test_the_base_has_the_rest_of_the_weight() -> None:
    assert Mixture((0.5, 0.25), (1.0, 2.0)).shares == (0.25, 0.5, 0.25)
    assert Mixture((), ()).shares == (1.0,)
    assert Mixture((0.6, 0.4 + 1e-7), (1.0, 1.0)).shares[0] == 0  # float32 weights of a GGUF


def test_one_memory_gets_what_it_recommends_else_the_papers_weight() -> None:
    assert mixture_weights([0.3], [None], None) == [0.3]
    assert mixture_weights([None], [None], None) == [0.6]


def test_a_total_is_split_by_recommendations() -> None:
    assert mixture_weights([0.2, 0.6], [None, None], 0.4) == pytest.approx([0.1, 0.3])


def test_defaults_together_weigh_as_much_as_the_largest() -> None:
    assert mixture_weights([0.6, 0.3], [None, None], None) == pytest.approx([0.4, 0.2])


def test_literal_weights_are_taken_as_they_are() -> None:
    assert mixture_weights([0.6, 0.6], [0.1, None], 0.5) == pytest.approx([0.1, 0.5])
    assert mixture_weights([0.6, 0.6], [0.7, 0.3], None) == [0.7, 0.3]


def test_a_total_without_a_memory_to_carry_it_is_refused() -> None:
    with pytest.raises(OptionError, match=r"total is 0\.5: every memory has a weight of its own"):
        mixture_weights([0.6], [0.5], 0.5)


def test_recommendations_of_zero_are_split_evenly() -> None:
    assert mixture_weights([0.0, 0.0], [None, None], 0.5) == [0.25, 0.25]


def test_without_a_memory_there_is_nothing_to_weigh() -> None:
    assert mixture_weights([], [], None) == []
    with pytest.raises(OptionError, match=r"total is 0\.5: there is no memory to weigh"):
        mixture_weights([], [], 0.5)


@given(unit, unit)
def test_the_total_of_one_memory_is_its_weight_to_the_bit(recommended: float, total: float) -> None:
    assert mixture_weights([recommended], [None], total) == [total]


@given(st.lists(st.none() | unit, min_size=1, max_size=5), st.none() | unit)
def test_weights_stay_in_range_and_sum_to_the_total(recommended: list[float | None], total: float | None) -> None:
    weights = mixture_weights(recommended, [None] * len(recommended), total)
    assert all(0 <= weight <= 1 for weight in weights)
    largest = max(0.6 if share is None else share for share in recommended)
    assert sum(weights) == pytest.approx(largest if total is None else total)


def test_the_best_lambda_has_the_lowest_perplexity_and_is_the_smallest_of_several() -> None:
    assert best_lambda({0.0: 9.0, 0.5: 7.0, 1.0: 8.0}) == 0.5
    assert best_lambda({1.0: 8.0, 0.0: 8.0, 0.5: 8.0}) == 0.0
    assert best_lambda({0.0: math.nan, 0.5: math.inf, 1.0: 8.0}) == 1.0
    assert best_lambda({0.0: math.nan, 1.0: math.nan}) == 0.0
