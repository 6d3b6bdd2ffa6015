"""What indexes say in the mixture: sparse voices, silence, weights by class, in each implementation of this machine."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge.errors import OptionError
from memdec_edge.mixture import mixing, sampling
from memdec_edge.mixture.online import hold, learn, learn_from
from memdec_edge.mixture.rows import N_CLASSES, SILENT, Found, Row
from memdec_edge.mixture.weights import LEAST_WEIGHT, Mixture, SoftBayes, lifted, shares_of
from tests.mixture.test_mixing import assert_near, each, running
from tests.mixture.test_sampling import NONE, PLAIN, normal, softmax

Wide = npt.NDArray[np.float64]
N_VOCAB = 40


def said(klass: int, **probs: float) -> Found:
    """`said(3, t5=0.25, t7=0.75)`: after a match of class 3 tokens 5 and 7 follow."""
    ids = [int(name[1:]) for name in probs]
    return Found(klass, np.array(ids, np.int32), np.array(list(probs.values()), np.float32))


def by_definition(rows: list[Row], found: list[Found], mixture: Mixture) -> Wide:
    """The mixture's probabilities, from the description of Mixture.at in words."""
    klass = max((one.klass for one in found), default=0)
    vector = mixture.matched[klass - 1] if klass else (*mixture.weights, *(0.0 for _ in found))
    weights = np.array([max(1 - sum(vector), 0.0), *vector])
    columns = [softmax(rows[0].astype(float))]
    for row, temperature in zip(rows[1:], mixture.temperatures, strict=True):
        part = softmax(row[:N_VOCAB].astype(float) / temperature)
        columns.append(np.concatenate([part, np.zeros(N_VOCAB - len(part))]))
    for k, one in enumerate(found):
        column = np.zeros(N_VOCAB)
        column[one.ids] = one.probs
        columns.append(column)
        if not one.klass:
            weights[len(rows) + k] = 0
    weights = weights / weights.sum() if weights.sum() > 0 else np.eye(len(weights))[0]
    mixed: Wide = weights @ np.array(columns)
    return mixed


@st.composite
def matches(draw: st.DrawFn) -> Found:
    klass = draw(st.integers(0, N_CLASSES - 1))
    if not klass:
        return SILENT
    ids = sorted(draw(st.sets(st.integers(0, N_VOCAB - 1), min_size=1, max_size=6)))
    counts = np.array([draw(st.integers(1, 1000)) for _ in ids], np.float64)
    return Found(klass, np.array(ids, np.int32), (counts / counts.sum()).astype(np.float32))


@st.composite
def vectors(draw: st.DrawFn, n: int) -> tuple[float, ...]:
    parts = [draw(st.sampled_from([0.0, 1e-9, 1.0]) | st.floats(0.001, 1)) for _ in range(n + 1)]
    total = sum(parts)
    return tuple(part / total for part in parts[1:]) if total > 0 else (0.0,) * n


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Row], list[list[Found]], Mixture]:
    """Rows of some positions, what one or two indexes say at each, and a mixture."""
    n_memories, n_indexes, n = draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 1000))
    lengths = [N_VOCAB, *(draw(st.sampled_from([30, N_VOCAB, 50])) for _ in range(n_memories))]
    rows = [normal(seed + k, n * length, 3).reshape(n, length) for k, length in enumerate(lengths)]
    found = [[draw(matches()) for _ in range(n_indexes)] for _ in range(n)]
    matched = tuple(draw(vectors(n_memories + n_indexes)) for _ in range(N_CLASSES - 1))
    temperatures = tuple(draw(st.sampled_from([1.0, 0.7])) for _ in range(n_memories))
    return rows, found, Mixture(draw(vectors(n_memories)), temperatures, matched)


@each
@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_the_mixture_with_indexes_is_that_of_its_definition(
    name: str, case: tuple[list[Row], list[list[Found]], Mixture]
) -> None:
    rows, found, mixture = case
    out = np.empty(N_VOCAB, np.float32)
    with running(name):
        for j, one in enumerate(found):
            here = [row[j] for row in rows]
            stats = mixing.mix(here[0], here[1:], mixture, out, [one])
            expected = by_definition(here, one, mixture)
            shares = mixture.at([each.klass for each in one])
            offset = sum(share * stat.logsumexp for share, stat in zip(shares, stats, strict=False))
            offset += sum(shares[len(rows) :]) * stats[0].logsumexp
            with np.errstate(divide="ignore"):
                assert_near(out, np.log(expected) + offset)
            assert sum(shares) == pytest.approx(1)


@each
def test_where_no_index_speaks_nothing_changes_by_a_bit(name: str) -> None:
    base, memory = normal(1, N_VOCAB, 3), normal(2, N_VOCAB, 3)
    outs = [np.empty(N_VOCAB, np.float32) for _ in range(2)]
    for weights in ((0.4,), (0.0,), (1.0,)):
        matched = ((0.1, 0.6),) * (N_CLASSES - 1)
        with running(name):
            mixing.mix(base, [memory], Mixture(weights, (1.0,)), outs[0])
            mixing.mix(base, [memory], Mixture(weights, (1.0,), matched), outs[1], [[SILENT]])
        assert outs[0].tobytes() == outs[1].tobytes()
    with running(name):
        free = Mixture((), (), ((0.0,),) * (N_CLASSES - 1))
        mixing.mix(base, [], free, outs[1], [[said(3, t5=1.0)]])
    assert outs[1].tobytes() == base.tobytes()


@each
@pytest.mark.parametrize("eta", [0.05, 0.4])
def test_a_token_teaches_the_weights_of_its_class_and_a_silent_index_keeps_its_own(name: str, eta: float) -> None:
    start = Mixture((0.3,), (1.0,), tuple((0.2, 0.1 + c / 40, 0.2) for c in range(N_CLASSES - 1)))
    rule = SoftBayes((0.3,), eta, 0.01, ((0.2, 0.3, 0.3),) * (N_CLASSES - 1))
    log_probs = np.log([[0.2, 0.1, 0.4], [0.1, 0.3, 0.2], [1.0, 0.6, 1.0], [1.0, 0.5, 0.9]])
    classes = np.array([[0, 4, 2], [0, 2, 0]], np.int32)
    with running(name):
        found = learn(start, rule, log_probs, classes)
    expected = {
        0: np.array([0.7, 0.3]),
        4: np.array([0.425, 0.2, 0.175, 0.2]),
        2: np.array([0.475, 0.2, 0.125, 0.2]),
    }
    awake = {0: [0, 1], 4: [0, 1, 2, 3], 2: [0, 1, 2]}
    for token, klass in enumerate((0, 4, 2)):
        own, p = expected[klass], np.exp(log_probs[:, token])
        spoken = np.zeros(4)
        spoken[awake[klass]] = own[awake[klass]] / own[awake[klass]].sum()
        mixed = spoken @ p
        np.testing.assert_allclose(found.weights[:, token], spoken, rtol=1e-12)
        assert found.log_probs[token] == pytest.approx(math.log(mixed), rel=1e-12)
        ratios = np.array([p[k] / mixed if k in awake[klass] else 1.0 for k in range(len(own))])
        initial = np.array(shares_of(rule.vectors[klass]))
        expected[klass] = 0.99 * own * (1 - eta + eta * ratios) + 0.01 * initial
    for klass, vector in enumerate(found.mixture.vectors):
        np.testing.assert_allclose(vector, expected.get(klass, shares_of(start.vectors[klass]))[1:], rtol=1e-10)


@each
@settings(deadline=None, max_examples=40)
@given(case=cases(), eta=st.floats(0, 1), share=st.floats(0, 1))
def test_verification_is_mixing_sampling_and_learning_position_by_position(
    name: str, case: tuple[list[Row], list[list[Found]], Mixture], eta: float, share: float
) -> None:
    rows, found, given_mixture = case
    start = lifted(given_mixture.vectors)
    mixture = given_mixture.after(start)
    rule = SoftBayes(start[0], eta, share, start[1:])
    n, out, scratch = len(found), np.empty(N_VOCAB, np.float32), sampling.scratch(N_VOCAB)
    with running(name):
        tokens, states = [], [mixture]
        for j in range(n):
            [sample], _, after = sampling.verify(
                rows[0][j : j + 1], [row[j : j + 1] for row in rows[1:]], states[-1], PLAIN, 3, j, NONE, [], out,
                scratch, rule, found[j : j + 1],
            )  # fmt: skip
            classes = [each.klass for each in found[j]]
            again = learn_from(states[-1], rule, sample, classes)
            assert again == after  # what a session replays is what the kernel did
            assert sample.weights == pytest.approx(states[-1].at(classes))
            tokens.append(sample.token)
            states.append(after)
        samples, _, after = sampling.verify(
            rows[0], rows[1:], mixture, PLAIN, 3, 0, NONE, tokens, out, scratch, rule, found
        )
    assert [sample.token for sample in samples] == tokens
    assert after == states[-1]
    for vector in after.vectors:
        assert min(shares_of(vector)) >= LEAST_WEIGHT * (1 - 1e-9)
        assert sum(shares_of(vector)) == pytest.approx(1)


@each
def test_held_weights_score_and_stay(name: str) -> None:
    mixture = Mixture((), (), tuple((c / 10,) for c in range(N_CLASSES - 1)))
    log_probs, classes = np.log([[0.2, 0.1, 0.4], [0.5, 1.0, 1.0]]), np.array([[0, 3, 8]], np.int32)
    with running(name):
        found = hold(mixture, log_probs, classes)
    np.testing.assert_allclose(np.exp(found.log_probs), [0.2, 0.8 * 0.1 + 0.2, 0.3 * 0.4 + 0.7], rtol=1e-12)
    assert found.mixture == mixture


ONE = Mixture((), (), ((0.5,),) * (N_CLASSES - 1))
IDS, PROBS = np.zeros(1, np.int32), np.ones(1, np.float32)
WRONG: list[tuple[type[Exception], Any]] = [
    (TypeError, None),
    (TypeError, [[Found(1, IDS.astype(np.int64), PROBS)]]),
    (TypeError, [[Found(1, IDS, PROBS.astype(float))]]),
    (ValueError, [[Found(N_CLASSES, IDS, PROBS)]]),
    (ValueError, [[Found(-1, IDS, PROBS)]]),
    (ValueError, [[Found(1, IDS[:0], PROBS[:0])]]),  # a match without tokens
    (ValueError, [[Found(0, IDS, PROBS)]]),  # tokens without a match
    (ValueError, [[Found(1, IDS, np.full(2, 0.5, np.float32))]]),
    (ValueError, [[Found(1, IDS + N_VOCAB, PROBS)]]),
    (ValueError, [[Found(1, IDS - 1, PROBS)]]),
    (ValueError, [[Found(1, IDS, PROBS * np.float32(np.nan))]]),
    (ValueError, [[Found(1, IDS, PROBS * 2)]]),
    (ValueError, [[Found(1, IDS, PROBS), SILENT]]),  # of two indexes
    (ValueError, [[]]),
    (ValueError, []),
    (ValueError, [[Found(1, IDS, PROBS)]] * 2),  # of two positions
]


@each
@pytest.mark.parametrize(("error", "found"), WRONG)
def test_matches_of_another_kind_are_refused(name: str, error: type[Exception], found: Any) -> None:
    base, out = normal(1, N_VOCAB), np.empty(N_VOCAB, np.float32)
    with running(name):
        with pytest.raises(error):
            mixing.mix(base, [], ONE, out, found)
        with pytest.raises(error):
            sampling.verify(base[None], [], ONE, PLAIN, 0, 0, NONE, [], out, sampling.scratch(N_VOCAB), None, found)


def test_weights_of_classes_that_make_no_mixture_are_refused() -> None:
    for matched in (((0.5,),) * 7, ((0.5,),) * 7 + ((0.5, 0.1),), ((1.5,),) * 8, ((0.6, 0.6),) * 8):
        with pytest.raises(OptionError):
            Mixture((), (), matched)
