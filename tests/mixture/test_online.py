"""The online weight, in each implementation of this machine, against its formula and what the formula promises."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge.errors import NumericsError, OptionError
from memdec_edge.mixture import sampling
from memdec_edge.mixture.online import learn
from memdec_edge.mixture.rows import Chain, Row, RowStats, Sampled, Wide
from memdec_edge.mixture.sampling import Verified
from memdec_edge.mixture.weights import LEAST_INITIAL, LEAST_WEIGHT, Mixture, SoftBayes, lift, shares_of
from tests.mixture.test_mixing import each, mixture_of, running
from tests.mixture.test_sampling import DEFAULT, NONE, PLAIN, normal, softmax


def even(n_memories: int) -> tuple[float, ...]:
    return (1 / (1 + n_memories),) * n_memories


def mixture_with(weights: tuple[float, ...]) -> Mixture:
    return Mixture(weights, (1.0,) * len(weights))


def some_log_probs(seed: int, n_models: int, n_tokens: int) -> Wide:
    """Of tokens, a tenth of them impossible for a model; the last model is better than the others."""
    rng = np.random.default_rng(seed)
    found = -rng.exponential(3.0, (n_models, n_tokens))
    found[rng.random(found.shape) < 0.1] = -np.inf
    found[-1] = np.maximum(found[-1] / 2, -20)
    return found


def by_the_formula(weights: Wide, rule: SoftBayes, log_probs: Wide) -> tuple[Wide, Wide, Wide]:
    """Log-probs of the mixture, the weights that met each token, those afterwards: in probabilities, as published."""
    initial, mixed, path = np.array(shares_of(rule.initial)), [], []
    for p in np.exp(log_probs).T:
        path.append(weights)
        mixed.append(weights @ p)
        weights = (1 - rule.share) * weights * (1 - rule.eta + rule.eta * p / mixed[-1]) + rule.share * initial
    return np.log(mixed), np.array(path).T, weights


@each
@pytest.mark.parametrize("n_memories", [1, 2, 8, 16])
@pytest.mark.parametrize(("eta", "share"), [(0.05, 0.002), (0.3, 0.1), (1.0, 0.05)])
def test_weights_follow_the_published_formula(name: str, n_memories: int, eta: float, share: float) -> None:
    rule = SoftBayes(even(n_memories), eta, share)
    start = (0.9 / n_memories,) * n_memories
    log_probs = some_log_probs(n_memories, 1 + n_memories, 300)
    mixed, path, after = by_the_formula(np.array(shares_of(start)), rule, log_probs)
    assert path.min() > LEAST_WEIGHT  # the floor has no part in this
    with running(name):
        found = learn(mixture_with(start), rule, log_probs)
    np.testing.assert_allclose(found.log_probs, mixed, rtol=1e-11)
    np.testing.assert_allclose(found.weights, path, rtol=1e-11)
    np.testing.assert_allclose(found.mixture.shares, after, rtol=1e-11)


@each
def test_at_full_rate_the_weights_are_the_posterior_of_bayes(name: str) -> None:
    log_probs = -np.random.default_rng(5).exponential(0.4, (3, 12))
    joint = np.log([0.5, 0.2, 0.3]) + log_probs.sum(1)
    with running(name):
        found = learn(mixture_with((0.2, 0.3)), SoftBayes(even(2), 1.0, 0.0), log_probs)
    np.testing.assert_allclose(found.mixture.shares, softmax(joint), rtol=1e-10)
    assert found.log_probs.sum() == pytest.approx(np.logaddexp.reduce(joint), rel=1e-12)


@each
def test_learning_in_parts_is_learning_at_once(name: str) -> None:
    rule, log_probs = SoftBayes(even(2)), some_log_probs(3, 3, 40)
    with running(name):
        whole = learn(mixture_with((0.3, 0.3)), rule, log_probs)
        mixture, path = mixture_with((0.3, 0.3)), []
        for token in range(40):
            part = learn(mixture, rule, log_probs[:, token : token + 1])
            path.append(part.weights[:, 0])
            mixture = part.mixture
        nothing = learn(mixture, rule, log_probs[:, :0])
    assert mixture == whole.mixture
    assert np.array_equal(np.array(path).T, whole.weights)
    assert (nothing.mixture, nothing.log_probs.shape, nothing.weights.shape) == (mixture, (0,), (3, 0))


@st.composite
def lessons(draw: st.DrawFn) -> tuple[Mixture, SoftBayes, Wide]:
    n_memories = draw(st.integers(1, 8))
    weights = [draw(st.floats(0, 1)) for _ in range(1 + n_memories)]
    total = sum(weights)
    start = tuple(weight / total for weight in weights[1:]) if total > 0 else even(n_memories)
    rule = SoftBayes(lift(shares_of(start), LEAST_INITIAL), draw(st.floats(0, 1)), draw(st.floats(0, 1)))
    # whatever is a legal mixture: weights of 0 and of 1e-310 too
    log_prob = st.floats(-1e3, 0) | st.sampled_from([0.0, -np.inf, -700.0, -1e300])
    n_tokens = draw(st.integers(1, 12))
    columns = draw(st.lists(st.lists(log_prob, min_size=n_tokens, max_size=n_tokens), min_size=1 + n_memories,
                            max_size=1 + n_memories))  # fmt: skip
    return mixture_with(start), rule, np.array(columns)


@each
@settings(deadline=None, max_examples=300)
@given(lesson=lessons())
def test_weights_stay_a_distribution_and_no_model_is_lost(name: str, lesson: tuple[Mixture, SoftBayes, Wide]) -> None:
    mixture, rule, log_probs = lesson
    with running(name):
        found = learn(mixture, rule, log_probs)
    assert not np.isnan(found.log_probs).any()
    assert (found.log_probs <= 1e-12).all()
    np.testing.assert_allclose(found.weights.sum(0), 1, rtol=1e-12)
    possible = (log_probs[np.array(mixture.shares) > 0, 0] > -np.inf).any()
    if rule.eta and possible:
        assert min(found.mixture.shares) >= LEAST_WEIGHT * (1 - 1e-9)
    if not rule.eta or not possible:
        assert np.array_equal(found.weights[:, :2].T[-1], np.array(mixture.shares))


@each
@settings(deadline=None, max_examples=100)
@given(lesson=lessons())
def test_every_implementation_learns_the_same(name: str, lesson: tuple[Mixture, SoftBayes, Wide]) -> None:
    with running("numpy"):
        expected = learn(*lesson)
    with running(name):
        found = learn(*lesson)
    for mine, theirs in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.mixture.shares, expected.mixture.shares, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_memories", [1, 2, 8])
@pytest.mark.parametrize("share", [0.0, 0.002])
def test_the_sum_stays_one_over_a_hundred_thousand_tokens(n_memories: int, share: float) -> None:
    rule = SoftBayes(even(n_memories), 0.05, share)
    log_probs = some_log_probs(9, 1 + n_memories, 100_000)
    found = learn(mixture_with(even(n_memories)), rule, log_probs)
    np.testing.assert_allclose(found.weights.sum(0), 1, rtol=1e-14)
    mixture = mixture_with(even(n_memories))
    for part in np.split(log_probs.astype(np.float32), 10_000, axis=1):  # a state that is stored in float32
        mixture = learn(mixture, rule, part.astype(np.float64)).mixture
        mixture = mixture_with(tuple(np.array(mixture.weights, np.float32).tolist()))
        assert abs(sum(mixture.shares) - 1) < 1e-7
    np.testing.assert_allclose(mixture.shares, found.mixture.shares, rtol=1e-3)


@each
def test_a_token_that_no_model_can_give_leaves_the_weights(name: str) -> None:
    mixture, rule = mixture_with((0.25, 0.25)), SoftBayes(even(2))
    with running(name):
        found = learn(mixture, rule, np.full((3, 4), -np.inf))
    assert found.mixture == mixture
    assert np.isneginf(found.log_probs).all()


@each
@pytest.mark.parametrize(("model", "culprit"), [(0, "base"), (2, "memory 2")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_log_prob_that_is_none_is_named(name: str, model: int, culprit: str, value: float) -> None:
    log_probs = np.full((3, 5), -1.0)
    log_probs[model, 3] = value
    with running(name), pytest.raises(NumericsError, match=f"^{culprit}: the log-prob of a token is {value:g}"):
        learn(mixture_with((0.2, 0.2)), SoftBayes(even(2)), log_probs)


@each
def test_a_model_that_is_always_wrong_keeps_the_least_weight_and_comes_back(name: str) -> None:
    wrong = np.array([[-5.0], [-0.1], [-np.inf]]).repeat(2000, axis=1)
    with running(name):
        down = learn(mixture_with((0.3, 0.3)), SoftBayes(even(2), 0.2, 0.0), wrong)
        assert down.mixture.weights[1] == LEAST_WEIGHT
        assert down.mixture.weights[0] == pytest.approx(1 - 2 * LEAST_WEIGHT, rel=1e-12)
        assert down.mixture.shares[0] == pytest.approx(LEAST_WEIGHT, rel=1e-9)
        up = learn(down.mixture, SoftBayes(even(2), 0.2, 0.0), wrong[[0, 2, 1]])
        assert up.mixture.weights[1] > 0.99


def test_a_rate_changes_the_share_in_proportion_and_zero_freezes() -> None:
    rule = SoftBayes((0.5,), 0.05, 0.002)
    assert rule.at(0.025).eta == 0.025
    assert rule.at(0.025).share == pytest.approx(0.001)
    assert (rule.at(0.0).eta, rule.at(0.0).share) == (0.0, 0.0)
    assert rule.at(0.0).at(0.05).share == 0.0
    found = learn(mixture_with((0.3,)), rule.at(0.0), some_log_probs(1, 2, 50))
    assert found.mixture == mixture_with((0.3,))


@pytest.mark.parametrize(
    ("initial", "eta", "share", "option"),
    [
        ((0.5,), -0.1, 0.0, "eta"),
        ((0.5,), 1.1, 0.0, "eta"),
        ((0.5,), math.nan, 0.0, "eta"),
        ((0.5,), 0.1, 1.1, "share"),
        ((0.5,), 0.1, math.nan, "share"),
        ((0.01,), 0.1, 0.1, "initial weight"),
        ((0.99,), 0.1, 0.1, "initial weight"),
        ((0.5, math.nan), 0.1, 0.1, "initial weight"),
    ],
)
def test_numbers_that_are_no_rule_are_refused(
    initial: tuple[float, ...], eta: float, share: float, option: str
) -> None:
    with pytest.raises(OptionError, match=f"^{option} is"):
        SoftBayes(initial, eta, share)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=17))
def test_lifted_weights_give_every_model_a_chance(shares: list[float]) -> None:
    total = sum(shares)
    start = tuple(share / total for share in shares[1:]) if total > 0 else even(len(shares) - 1)
    found = shares_of(lift(shares_of(start), LEAST_INITIAL))
    SoftBayes(found[1:])  # accepts them
    assert sum(found) == pytest.approx(1)
    assert min(found) >= LEAST_INITIAL - 1e-9
    assert np.all(np.diff(np.array(found)[np.argsort(shares_of(start), kind="stable")]) >= -1e-9)
    if min(shares_of(start)) >= LEAST_INITIAL:
        np.testing.assert_allclose(found, shares_of(start), rtol=1e-12)


# --- in verify ------------------------------------------------------------------------------------------------------


def verify(
    base: Row, memories: list[Row], mixture: Mixture, chain: Chain, position: int, draft: list[int],
    rule: SoftBayes | None,
) -> Verified:  # fmt: skip
    n_vocab = base.shape[1]
    out, scratch = np.empty(n_vocab, np.float32), sampling.scratch(n_vocab)
    return sampling.verify(base, memories, mixture, chain, 4, position, NONE, draft, out, scratch, rule)


def drafted(base: Row, memories: list[Row], mixture: Mixture, chain: Chain, rule: SoftBayes | None) -> Verified:
    """Row by row, each call from where the one before ended."""
    samples, stats = list[Sampled](), list[RowStats]()
    for j in range(len(base)):
        rows = [memory[j : j + 1] for memory in memories]
        found, stats, mixture = verify(base[j : j + 1], rows, mixture, chain, 90 + j, [], rule)
        samples += found
    return Verified(samples, stats, mixture)


@st.composite
def timelines(draw: st.DrawFn) -> tuple[Row, list[Row], Mixture, SoftBayes]:
    """Rows of up to 17 positions, memories shorter or longer than the base, -inf among the logits."""
    n, n_vocab = draw(st.integers(1, 17)), draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    lengths = draw(st.lists(st.integers(1, n_vocab + 8), min_size=1, max_size=8))
    base, *memories = ((rng.normal(size=(n, m)) * 4).astype(np.float32) for m in (n_vocab, *lengths))
    for rows in (base, *memories):
        rows[:, 1:][rng.random((n, rows.shape[1] - 1)) < 0.2] = -np.inf
    temperatures = tuple(draw(st.sampled_from([1.0, 0.7, 2.0])) for _ in lengths)
    rule = SoftBayes(even(len(lengths)), draw(st.sampled_from([0.05, 0.5, 1.0])), draw(st.sampled_from([0.0, 0.002])))
    return base, memories, Mixture(even(len(lengths)), temperatures), rule


@each
@settings(deadline=None, max_examples=100)
@given(timeline=timelines(), chain=st.sampled_from([PLAIN, DEFAULT, Chain(0, 1, 0, 0)]))
def test_a_draft_verified_at_once_is_row_by_row_to_the_bit(
    name: str, timeline: tuple[Row, list[Row], Mixture, SoftBayes], chain: Chain
) -> None:
    base, memories, mixture, rule = timeline
    with running(name):
        expected = drafted(base, memories, mixture, chain, rule)
        tokens = [sample.token for sample in expected.samples]
        assert verify(base, memories, mixture, chain, 90, tokens, rule) == expected
        if len(base) > 2:  # a rejected draft: the weights have learnt from what was sampled and no further
            found = verify(base, memories, mixture, chain, 90, [tokens[0], -1, *tokens[2:]], rule)
            assert found.samples == expected.samples[:2]
            assert found.mixture.shares == expected.samples[2].weights


@each
@settings(deadline=None, max_examples=100)
@given(timeline=timelines())
def test_verify_learns_from_what_each_model_gave_to_the_sampled_token(
    name: str, timeline: tuple[Row, list[Row], Mixture, SoftBayes]
) -> None:
    base, memories, mixture, rule = timeline
    with running(name):
        found = drafted(base, memories, mixture, DEFAULT, rule)
    log_probs = []
    for j, sample in enumerate(found.samples):
        column = []
        for rows, temperature in zip([base, *memories], [1.0, *mixture.temperatures], strict=True):
            p = softmax(rows[j, : base.shape[1]].astype(float) / temperature)  # whatever the chain truncates
            column.append(math.log(p[sample.token]) if sample.token < len(p) and p[sample.token] > 0 else -math.inf)
        np.testing.assert_allclose(sample.log_probs, column, atol=1e-5)
        log_probs.append(column)
    mixed, path, after = by_the_formula(np.array(mixture.shares), rule, np.array(log_probs).T)
    if path.min() > 2 * LEAST_WEIGHT:
        np.testing.assert_allclose([sample.weights for sample in found.samples], path.T, atol=1e-4)
        np.testing.assert_allclose([sample.log_prob for sample in found.samples], mixed, atol=1e-4)
    if min(path.min(), after.min()) > 2 * LEAST_WEIGHT:
        np.testing.assert_allclose(found.mixture.shares, after, atol=1e-4)


@each
def test_a_frozen_rule_is_a_fixed_mixture_bit_for_bit(name: str) -> None:
    base, memories = normal(1, 8 * 90).reshape(8, 90), [normal(2, 8 * 80).reshape(8, 80)]
    with running(name):
        for weight in (0.0, 0.6, 1.0):
            mixture = mixture_of((weight, 1.0))
            fixed = drafted(base, memories, mixture, DEFAULT, None)
            assert drafted(base, memories, mixture, DEFAULT, SoftBayes((0.5,)).at(0.0)) == fixed
            assert fixed.mixture == mixture


@each
def test_two_equal_models_leave_the_weights_alone(name: str) -> None:
    base = normal(1, 17 * 90).reshape(17, 90)
    mixture = mixture_of((0.3, 1.0), (0.1, 1.0))
    with running(name):
        found = drafted(base, [base.copy(), base.copy()], mixture, DEFAULT, SoftBayes(even(2), 0.5, 0.0))
    np.testing.assert_allclose(found.mixture.shares, mixture.shares, rtol=1e-12)


@each
def test_an_id_that_a_memory_lacks_costs_it_weight(name: str) -> None:
    base, memory = np.zeros((1, 40), np.float32), np.zeros((1, 30), np.float32)
    base[0, 35] = 50.0
    with running(name):
        found = verify(base, [memory], mixture_of((0.4, 1.0)), Chain(0, 1, 0, 0), 0, [], SoftBayes((0.5,), 0.05, 0.0))
    assert found.samples[0].token == 35
    np.testing.assert_allclose(found.samples[0].log_probs, [0, -math.inf], atol=1e-6)
    assert found.mixture.weights[0] == pytest.approx(0.4 * 0.95)


@each
def test_a_bad_row_raises_whatever_was_learnt_before_it(name: str) -> None:
    base, memory = np.zeros((3, 5), np.float32), np.zeros((3, 5), np.float32)
    memory[2, 4] = np.nan
    mixture, rule = mixture_of((0.4, 1.0)), SoftBayes((0.5,))
    with running(name):
        tokens = [verify(base[j : j + 1], [memory[j : j + 1]], mixture, PLAIN, j, [], rule)[0][0].token for j in (0, 1)]
        with pytest.raises(NumericsError, match="memory 1: the logit of token 4 is nan"):
            verify(base, [memory], mixture, PLAIN, 0, tokens, rule)
    assert mixture == mixture_of((0.4, 1.0))


@each
def test_without_share_the_weights_are_a_martingale_in_the_mean(name: str) -> None:
    """For tokens drawn from the mixture; for tokens of one model they are not, so that the test can fail."""
    n = 4000
    base, memory = normal(1, 30, 1.5).reshape(1, 30), normal(2, 30, 1.5).reshape(1, 30)
    mixture, rule = mixture_of((0.4, 1.0)), SoftBayes((0.4,), 0.3, 0.0)
    with running(name):
        after = [verify(base, [memory], mixture, PLAIN, j, [], rule).mixture.weights[0] for j in range(n)]
        alone = [verify(base, [memory], mixture_of((0.0, 1.0)), PLAIN, j, [], None) for j in range(n)]
        column = np.array([sample.log_probs for sampled in alone for sample in sampled.samples]).T
        other = [learn(mixture, rule, column[:, j : j + 1]).mixture.weights[0] for j in range(n)]
    error = np.std(after) / math.sqrt(n)
    assert abs(np.mean(after) - 0.4) < 4 * error
    assert abs(np.mean(other) - 0.4) > 10 * error


@each
def test_rules_and_arrays_of_another_kind_are_refused(name: str) -> None:
    base, log_probs = np.zeros((1, 4), np.float32), np.full((2, 3), -1.0)
    one, two = SoftBayes((0.5,)), SoftBayes(even(2))
    with running(name):
        with pytest.raises(ValueError, match="2 initial weights for 1 memories"):
            verify(base, [base], mixture_of((0.5, 1.0)), PLAIN, 0, [], two)
        with pytest.raises(ValueError, match="2 initial weights for 1 memories"):
            learn(mixture_with((0.5,)), two, log_probs)
        for shape in ((3, 2), (6,), (1, 6)):
            with pytest.raises(ValueError):  # noqa: PT011  NumPy's own words for some of them
                learn(mixture_with((0.5,)), one, log_probs.reshape(shape))
