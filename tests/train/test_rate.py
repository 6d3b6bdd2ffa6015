"""train/rate.py: the learning rate's course, and the choice of its peak."""

import math
from collections.abc import Callable

import pytest

from memdec_edge.train.rate import choose_rate, learning_rate, trial_steps


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    rates = [learning_rate(1.0, 0.1, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert learning_rate(1.0, 0.0, 0, 100) == 1.0


@pytest.mark.parametrize(("steps", "trial"), [(1, 1), (3, 3), (60, 4), (200, 10), (10**6, 16)])
def test_a_trial_takes_a_twentieth_of_the_steps_within_bounds(steps: int, trial: int) -> None:
    assert trial_steps(steps) == trial


def looked_up(found: dict[float, float], tried: list[float]) -> Callable[[float], float]:
    def trial(rate: float) -> float:
        tried.append(rate)
        return found[rate]

    return trial


@pytest.mark.parametrize(
    ("found", "best", "trials"),
    [
        ({3.0: 20.6, 2.0: 21.2, 1.0: 0.0}, 3.0, 2),  # ends with the first that does worse
        ({3.0: 79.0, 2.0: 30.0, 1.0: 14.8}, 1.0, 3),
        ({3.0: 79.0, 2.0: 14.8, 1.0: 16.0}, 2.0, 3),
        ({3.0: math.inf, 2.0: math.inf, 1.0: 16.0}, 1.0, 3),
    ],
)
def test_the_rate_falls_until_a_trial_does_worse_than_the_one_before(
    found: dict[float, float], best: float, trials: int
) -> None:
    tried: list[float] = []
    assert choose_rate((3.0, 2.0, 1.0), looked_up(found, tried)) == best
    assert tried == [3.0, 2.0, 1.0][:trials]
