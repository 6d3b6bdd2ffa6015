"""train/knn/gate.py: the fit against a plain search, and against data whose temperature and gate are known."""

import numpy as np
import pytest

from memdec_edge.train.knn.gate import Gate, fit_gate


def retrieval(n: int, k: int, tau: float, gate: Gate, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances, hits and a teacher's log-probs. The true token is drawn from the mixture: that of a neighbour with the
    odds of `gate`, else one of ten that the teacher finds equally likely and no neighbour has."""
    random = np.random.default_rng(seed)
    distances = np.sort(random.gamma(2.0, 3.0, (n, k)) + random.gamma(1.0, 8.0, (n, 1)), axis=1).astype(np.float32)
    weights = np.exp(-(distances - distances[:, :1]).astype(float) / tau)
    weights /= weights.sum(1, keepdims=True)
    drawn = np.array([random.choice(k, p=row) for row in weights])
    is_right = random.uniform(size=n) < gate.at(distances[:, 0])
    hits = np.zeros((n, k), bool)
    hits[np.arange(n), drawn] = is_right
    teacher = np.where(is_right, 1e-6, 0.1)
    return distances, hits, np.log(teacher).astype(np.float32)


def perplexity(distances: np.ndarray, hits: np.ndarray, teacher: np.ndarray, tau: float, gate: np.ndarray) -> float:
    """Of the mixture, position by position, in Python's own floats."""
    losses = []
    for row in range(len(distances)):
        weights = [np.exp(-(float(d) - float(distances[row, 0])) / tau) for d in distances[row]]
        knn = sum(weight for weight, hit in zip(weights, hits[row], strict=True) if hit) / sum(weights)
        losses.append(-np.log(gate[row] * knn + (1 - gate[row]) * np.exp(float(teacher[row]))))
    return float(np.exp(np.mean(losses)))


def test_the_fit_finds_the_temperature_and_the_gate_that_made_the_data() -> None:
    truth = Gate(1.5, 0.2)
    distances, hits, teacher = retrieval(4_000, 16, 3.0, truth)
    found = fit_gate(distances, hits, teacher, None)
    assert 1.5 < found.tau < 6
    near = np.array([0.5, 5.0, 10.0, 20.0, 40.0])
    np.testing.assert_allclose(found.gate.at(near), truth.at(near), atol=0.1)
    assert found.knn == pytest.approx(
        perplexity(distances, hits, teacher, found.tau, found.gate.at(distances[:, 0])), rel=1e-5
    )
    assert found.weight == pytest.approx(found.gate.at(distances[:, 0]).mean())
    assert found.teacher == pytest.approx(float(np.exp(-teacher.astype(float).mean())), rel=1e-5)


def test_no_other_temperature_or_gate_does_better() -> None:
    distances, hits, teacher = retrieval(300, 8, 2.0, Gate(0.0, 0.1), seed=1)
    found = fit_gate(distances, hits, teacher, None)
    for tau in (found.tau / 4, found.tau * 2**-0.5, found.tau * 2**0.5, found.tau * 4):
        for gate in (found.gate, Gate(found.gate.intercept + 0.5, found.gate.slope), Gate(-5.0, 0.0)):
            assert found.knn <= perplexity(distances, hits, teacher, tau, gate.at(distances[:, 0])) * 1.00001
    given = fit_gate(distances, hits, teacher, 7.0)
    assert given.tau == 7.0
    assert given.knn == pytest.approx(
        perplexity(distances, hits, teacher, 7.0, given.gate.at(distances[:, 0])), rel=1e-5
    )


def test_a_retriever_that_is_never_right_hardly_counts() -> None:
    distances, hits, teacher = retrieval(200, 8, 2.0, Gate(2.0, 0.0))
    found = fit_gate(distances, np.zeros_like(hits), teacher, None)
    assert found.weight < 0.01
    assert found.knn < 1.01 * found.teacher


def test_the_gate_falls_with_the_distance_and_ends_at_none() -> None:
    gate = Gate(1.0, 0.5).at(np.array([0.0, 1.0, 2.0, 1e30, np.inf], np.float32))
    assert gate == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-0.5)), 0.5, 0.0, 0.0])


def test_a_position_without_any_neighbour_is_the_teachers() -> None:
    distances, hits, teacher = retrieval(300, 8, 2.0, Gate(1.0, 0.1))
    distances[5] = np.inf
    hits[5] = False
    found = fit_gate(distances, hits, teacher, None)
    assert found.weight > 0.2
    assert np.isfinite(found.knn)
    assert Gate(1.0, 0.0).at(distances[:, 0])[5] == 0


def test_a_hopeless_token_does_not_spoil_the_fit() -> None:
    distances = np.array([[1.0, 5.0], [1.0, 5.0], [1.0, np.inf]], np.float32)
    hits = np.array([[True, False], [True, False], [False, False]])
    found = fit_gate(distances, hits, np.array([-3.0, -3.0, -200.0], np.float32), None)
    assert found.tau < 0.1  # sharp, as two of three positions want it
    assert np.isfinite(found.knn)
