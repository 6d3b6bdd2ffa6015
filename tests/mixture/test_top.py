"""The likeliest tokens of a row against a full sort, and their log-probs against NumPy in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.mixture.rows import SILENT, Found, Sampled
from memdec_edge.mixture.top import largest, with_tops
from tests.mixture.test_mixing import each, running
from tests.mixture.test_sampling import normal, softmax


@given(st.integers(1, 700), st.integers(1, 90), st.integers(0, 2**16), st.booleans())
def test_partial_selection_is_the_head_of_a_stable_sort(length: int, count: int, seed: int, ties: bool) -> None:
    row = np.round(normal(seed, length), 0 if ties else 6)
    row[np.random.default_rng(seed).random(length) < 0.2] = -np.inf
    expected = [index for index in np.argsort(-row, kind="stable") if row[index] > -np.inf][:count]
    assert largest(row, count).tolist() == expected


@each
def test_log_probs_are_those_of_mixture_and_models(name: str) -> None:
    base, memory = normal(1, 300).reshape(2, 150), normal(2, 280).reshape(2, 140)
    weights, temperature = [0.6, 0.2], 1.5
    samples = [Sampled(3, -1.0, (-1.0, -2.0), (1 - weight, weight)) for weight in weights]
    with running(name):
        found = with_tops(samples, base, [memory], [], (temperature,), 5, np.empty(150, np.float32))
    for index, sample in enumerate(found):
        models = [softmax(base[index]), softmax(memory[index] / temperature)]
        mixed = (1 - weights[index]) * models[0]
        mixed[:140] += weights[index] * models[1]
        assert sample[:4] == samples[index][:4]
        assert sample.top is not None
        for top, p in zip((sample.top.mixture, *sample.top.models), (mixed, *models), strict=True):
            assert [token for token, _ in top] == np.argsort(-p)[:5].tolist()
            assert [log_prob for _, log_prob in top] == pytest.approx(np.log(np.sort(p)[::-1][:5]), abs=1e-5)


@each
def test_log_probs_of_the_mixture_count_what_indexes_say(name: str) -> None:
    base, memory = normal(1, 300).reshape(2, 150), normal(2, 280).reshape(2, 140)
    match = Found(3, np.array([7, 90], np.int32), np.array([0.75, 0.25], np.float32))
    samples = [Sampled(3, -1.0, (), (0.5, 0.2, 0.3, 0.0)), Sampled(3, -1.0, (), (0.6, 0.4, 0.0, 0.0))]
    with running(name):
        found = with_tops(
            samples, base, [memory], [[match, SILENT], [SILENT, SILENT]], (1.0,), 4, np.empty(150, np.float32)
        )
    for index, sample in enumerate(found):
        weights = samples[index].weights
        mixed = weights[0] * softmax(base[index])
        mixed[:140] += weights[1] * softmax(memory[index])
        mixed[[7, 90]] += weights[2] * np.array([0.75, 0.25])
        assert sample.top is not None
        assert [token for token, _ in sample.top.mixture] == np.argsort(-mixed)[:4].tolist()
        expected = np.log(np.sort(mixed)[::-1][:4])
        assert [log_prob for _, log_prob in sample.top.mixture] == pytest.approx(expected, abs=1e-5)
