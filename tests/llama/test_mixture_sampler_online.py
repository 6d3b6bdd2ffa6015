"""The sampler whose weights learn from what a real llama.cpp chain accepts."""

import gc

import llama_cpp
import numpy as np
import pytest

from memdec_edge.errors import OptionError
from memdec_edge.llama.mixture_sampler import MixtureSampler
from memdec_edge.mixture import mixing
from memdec_edge.mixture.online import learn
from memdec_edge.mixture.rows import Row
from memdec_edge.mixture.weights import Mixture, SoftBayes
from tests.llama.test_mixture_sampler import MIXTURE, N, apply, chain_of, some_rows

RULE = SoftBayes((0.5, 0.2), 0.3, 0.02)


@pytest.fixture
def learner() -> MixtureSampler:
    return MixtureSampler(N, MIXTURE, RULE)


def after(mixture: Mixture, base: Row, memories: list[Row], token: int) -> Mixture:
    """The mixture once a token was accepted that these rows gave, from the log-probs of float64."""
    log_probs = []
    for row, temperature in zip([base, *memories], [1.0, *mixture.temperatures], strict=True):
        scaled = row[:N].astype(float) / temperature
        log_probs.append([scaled[token] - np.logaddexp.reduce(scaled) if token < len(scaled) else -np.inf])
    return learn(mixture, RULE, np.array(log_probs)).mixture


def assert_same(found: Mixture, expected: Mixture) -> None:
    assert found.temperatures == expected.temperatures
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-5)


def test_a_chain_learns_from_each_token_that_it_accepts(learner: MixtureSampler) -> None:
    chain = chain_of(learner.sampler, llama_cpp.llama_sampler_init_dist(42))
    expected = MIXTURE
    for seed in range(20):
        base, memories = some_rows(seed)
        learner.set_rows(memories)
        out = np.empty_like(base)
        mixing.mix(base, memories, learner.mixture, out)
        data, array = apply(chain, base)
        assert data["logit"].tobytes() == out.tobytes()  # of the weights as they are now
        token = int(array.data[array.selected].id) if seed != 7 else N - 20  # which the second memory lacks
        llama_cpp.llama_sampler_accept(chain, token)
        expected = after(expected, base, memories, token)
        assert_same(learner.mixture, expected)
    assert max(abs(np.subtract(learner.mixture.weights, MIXTURE.weights))) > 0.05
    llama_cpp.llama_sampler_free(chain)


def test_without_a_rule_the_weights_stay() -> None:
    mixer = MixtureSampler(N, MIXTURE)
    chain = chain_of(mixer.sampler)
    base, memories = some_rows(1)
    mixer.set_rows(memories)
    apply(chain, base)
    llama_cpp.llama_sampler_accept(chain, 3)
    llama_cpp.llama_sampler_reset(chain)
    assert mixer.mixture == MIXTURE
    llama_cpp.llama_sampler_free(chain)


def test_a_token_that_met_no_mixed_row_teaches_nothing(learner: MixtureSampler) -> None:
    chain = chain_of(learner.sampler)
    base, memories = some_rows(1)
    llama_cpp.llama_sampler_accept(chain, 3)  # of a prompt
    learner.set_rows(memories)
    llama_cpp.llama_sampler_accept(chain, 3)
    assert learner.mixture == MIXTURE
    apply(chain, base)
    learner.set_rows(some_rows(2)[1])  # no longer those that were mixed
    llama_cpp.llama_sampler_accept(chain, 3)
    assert learner.mixture == MIXTURE
    apply(chain, base)
    apply(chain, np.full_like(base, np.nan))  # the last row failed
    llama_cpp.llama_sampler_accept(chain, 3)
    assert learner.mixture == MIXTURE
    for token in (-1, N, 2**31 - 1):  # no model can give it
        apply(chain, base)
        llama_cpp.llama_sampler_accept(chain, token)
    assert learner.mixture == MIXTURE
    apply(chain, base)
    for _ in range(3):  # once for each row
        llama_cpp.llama_sampler_accept(chain, 3)
    assert_same(learner.mixture, after(MIXTURE, base, some_rows(2)[1], 3))
    llama_cpp.llama_sampler_free(chain)


def test_an_original_that_is_gone_leaves_a_chain_that_learns_nothing() -> None:
    learner = MixtureSampler(N, MIXTURE, RULE)
    chain = chain_of(learner.sampler)
    base, memories = some_rows(1)
    learner.set_rows(memories)
    apply(chain, base)
    twin = MixtureSampler.of(llama_cpp.llama_sampler_chain_get(chain, 0))
    del learner, memories
    gc.collect()
    llama_cpp.llama_sampler_accept(chain, 3)
    assert twin.mixture == MIXTURE
    llama_cpp.llama_sampler_free(chain)


def test_a_clone_goes_on_learning_by_itself(learner: MixtureSampler) -> None:
    chain = chain_of(learner.sampler)
    base, memories = some_rows(1)
    learner.set_rows(memories)
    apply(chain, base)
    llama_cpp.llama_sampler_accept(chain, 3)
    learned = learner.mixture
    apply(chain, base)
    clone = llama_cpp.llama_sampler_clone(chain)  # between a row and its token
    handle = MixtureSampler.of(llama_cpp.llama_sampler_chain_get(clone, 0))
    assert handle.mixture == learned
    expected = after(learned, base, memories, 5)
    memories[0][:] = 0.0
    llama_cpp.llama_sampler_accept(clone, 5)
    assert_same(handle.mixture, expected)
    assert learner.mixture == learned
    llama_cpp.llama_sampler_reset(clone)
    assert handle.mixture == Mixture(RULE.initial, MIXTURE.temperatures)
    llama_cpp.llama_sampler_accept(clone, 5)
    assert handle.mixture == Mixture(RULE.initial, MIXTURE.temperatures)
    other = MixtureSampler(N, MIXTURE, RULE)
    llama_cpp.llama_sampler_copy(learner.sampler, other.sampler)
    assert MixtureSampler.of(other.sampler).mixture == learned
    for each in (chain, clone, other.sampler):
        llama_cpp.llama_sampler_free(each)


def test_a_rule_for_other_memories_is_refused() -> None:
    with pytest.raises(ValueError, match="initial weights for 1 memories and 0 indexes, not for 2"):
        MixtureSampler(N, MIXTURE, SoftBayes((0.5,)))


def test_a_mixture_with_indexes_is_refused() -> None:
    with pytest.raises(OptionError, match=r"a llama\.cpp chain mixes memories alone"):
        MixtureSampler(N, Mixture((), (), ((0.5,),) * 8))
