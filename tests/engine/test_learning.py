"""Weights that learn: from the prompt, from what is generated, whatever was cached and however much was drafted."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from memdec_edge.engine import Engine, MemoryMixture, Session
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.options import GenerationOptions, MemoryOptions, MixtureOptions
from tests.conftest import Family
from tests.support.plain import FOUR, ONE_THREAD, PENALISED, WARM, finish, prompts, watched

ETA, SHARE = 0.3, 0.01  # fast, so that differences show
LEARNING = MixtureOptions(eta=ETA, share=SHARE, generated=0.5)
SEEDED = replace(WARM, seed=5)
ENDLESS = GenerationOptions(ignore_eos=True)


@pytest.fixture(scope="module")
def engine(family: Family) -> Iterator[Engine]:
    memories = [MemoryOptions(family.memory), MemoryOptions(family.padded)]
    with closing(Engine(family.base, memories, FOUR)) as opened:
        yield opened


@pytest.fixture
def fresh(family: Family) -> Iterator[Engine]:
    with closing(Engine(family.base, [MemoryOptions(family.memory)], FOUR)) as opened:
        yield opened


def begin(engine: Engine, prompt: list[int], learning: MixtureOptions = LEARNING, draft: int | None = 0) -> Session:
    generation = replace(ENDLESS, draft=draft)
    return engine.session(prompt, SEEDED, generation, mixture=engine.mixture(learning), limit=len(prompt) + 40)


def log_probs(paths: list[object], tokens: list[int], n_vocab: int) -> npt.NDArray[np.float64]:
    """Of tokens[1:] under each model in a context of its own, [models, tokens - 1], in float64."""
    found = []
    for path in paths:
        with ExitStack() as stack:
            model = stack.enter_context(closing(Model(str(path))))
            context = stack.enter_context(closing(Context(model, ONE_THREAD, 512)))
            rows = [row[:n_vocab].astype(np.float64) for row in context.feed_rows(tokens[:-1])]
            found.append([row[t] - np.logaddexp.reduce(row) for row, t in zip(rows, tokens[1:], strict=True)])
    return np.array(found)


def soft_bayes(initial: list[float], columns: npt.NDArray[np.float64], rates: list[float]) -> npt.NDArray[np.float64]:
    """The rule, written out."""
    start = weights = np.array(initial)
    for column, rate in zip(columns.T, rates, strict=True):
        ratios = np.exp(column) / (weights @ np.exp(column))
        weights = (1 - rate * SHARE) * weights * (1 - rate * ETA * (1 - ratios))
        weights = weights + rate * SHARE * start
    return weights


def test_after_a_prompt_the_weights_are_those_of_the_rule_over_its_tokens(family: Family, engine: Engine) -> None:
    [prompt] = prompts(1, 60)
    paths: list[object] = [family.base, family.memory, family.padded]
    columns = log_probs(paths, prompt, engine.base.n_vocab)
    initial = [0.5, 0.25, 0.25]  # no file recommends a lambda
    for window, first in ((256, 1), (20, 40), (0, 60)):
        with closing(begin(engine, prompt, replace(LEARNING, evidence=window))) as session:
            session.prefill()
            expected = soft_bayes(initial, columns[:, first - 1 :], [1.0] * (60 - first))
            np.testing.assert_allclose(session.mixture.shares, expected, atol=2e-5)
    with closing(begin(engine, prompt[:30])) as session:
        session.extend(prompt[30:45], rate=0.0)  # a template's text
        session.extend(prompt[45:], rate=0.5)
        session.prefill()
        expected = soft_bayes(initial, columns, [1.0] * 29 + [0.0] * 15 + [0.5] * 15)
        np.testing.assert_allclose(session.mixture.shares, expected, atol=2e-5)


def test_generated_tokens_teach_the_weights_at_their_own_rate(family: Family, engine: Engine) -> None:
    [prompt] = prompts(1, 20)
    with closing(begin(engine, prompt, draft=3)) as session:
        samples = finish(engine, session)
        columns = log_probs([family.base, family.memory, family.padded], session.tokens, engine.base.n_vocab)
        rates = [1.0] * 19 + [0.5] * 40
        for at, sample in enumerate(samples):
            expected = soft_bayes([0.5, 0.25, 0.25], columns[:, : 19 + at], rates[: 19 + at])
            np.testing.assert_allclose(sample.weights, expected, atol=5e-5)
            np.testing.assert_allclose(sample.log_probs, columns[:, 19 + at], atol=1e-3)
        expected = soft_bayes([0.5, 0.25, 0.25], columns, rates)
        np.testing.assert_allclose(session.mixture.shares, expected, atol=5e-5)


def test_the_text_and_the_weights_of_a_seed_are_the_same_at_every_draft_length(fresh: Engine) -> None:
    for prompt in prompts(3, 30):
        for sampling in (SEEDED, replace(PENALISED, seed=5)):
            found = []
            for draft in (0, 1, 3, 8, None):
                mixture, generation = fresh.mixture(LEARNING), replace(ENDLESS, draft=draft)
                with closing(fresh.session(prompt, sampling, generation, mixture=mixture, limit=70)) as session:
                    finish(fresh, session)
                    found.append((session.tokens, session.mixture.shares))
            for tokens, shares in found[1:]:
                assert tokens == found[0][0]
                np.testing.assert_allclose(shares, found[0][1], atol=1e-4)


def test_what_was_cached_does_not_change_the_weights_and_is_not_read_again(
    fresh: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [text] = prompts(1, 120)
    with closing(begin(fresh, text)) as session:
        session.prefill()
        first = session.mixture.shares
    with watched(monkeypatch, fresh.context) as decodes, closing(begin(fresh, text)) as session:
        session.prefill()
        assert session.mixture.shares == first
        assert decodes == []
    with closing(fresh.session(text, WARM, ENDLESS, mixture=MemoryMixture.of([]), limit=130)) as session:
        session.prefill()  # in another slot or this one: without logits and without memories
    short = replace(LEARNING, evidence=30)
    with closing(begin(fresh, text[:100])) as session:
        session.prefill()
    with closing(begin(fresh, text, short)) as session, watched(monkeypatch, fresh.context) as decodes:
        session.prefill()
        assert sum(map(len, decodes)) <= 31
        again = session.mixture.shares
    with closing(begin(fresh, text[:1])), closing(begin(fresh, text, short)) as session:
        session.prefill()
        np.testing.assert_allclose(session.mixture.shares, again, atol=1e-5)


def test_a_second_turn_learns_from_both_turns_and_reads_only_what_is_new(
    fresh: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [text, more] = prompts(2, 30)
    with closing(begin(fresh, text, draft=2)) as session:
        while len(session.tokens) < 45:
            fresh.step([session])
        spoken = session.tokens[30:]
        with watched(monkeypatch, fresh.context) as decodes:
            session.extend(more[:10])
            session.prefill()
        assert sum(map(len, decodes)) <= 10 + 1
        shares = session.mixture.shares
    with closing(begin(fresh, [9, 9])), closing(begin(fresh, text)) as other:  # another slot, nothing cached
        other.extend(spoken, rate=LEARNING.generated)
        other.extend(more[:10])
        other.prefill()
        np.testing.assert_allclose(other.mixture.shares, shares, atol=1e-4)


def test_rewinding_and_forking_go_on_with_the_weights_of_that_place(fresh: Engine) -> None:
    [prompt] = prompts(1, 25)
    with ExitStack() as stack:
        session = stack.enter_context(closing(begin(fresh, prompt, draft=2)))
        samples = finish(fresh, session)
        session.rewind(35)
        assert session.mixture.shares == samples[10].weights
        twin = stack.enter_context(closing(fresh.fork(session)))
        assert twin.mixture == session.mixture
        assert [sample.token for sample in finish(fresh, session)] == [sample.token for sample in samples[10:]]
        assert [sample.token for sample in finish(fresh, twin)] == [sample.token for sample in samples[10:]]
        session.rewind(12)  # into the prompt: the weights learn from what is left of it
        session.prefill()
        shorter = stack.enter_context(closing(begin(fresh, prompt[:12])))
        shorter.prefill()
        np.testing.assert_allclose(session.mixture.shares, shorter.mixture.shares, atol=1e-5)


def test_a_memory_that_is_the_base_keeps_its_weight(family: Family) -> None:
    options = replace(ONE_THREAD, force=True)
    with closing(Engine(family.base, [MemoryOptions(family.base)], options)) as engine:
        with closing(begin(engine, prompts(1, 40)[0])) as session:
            finish(engine, session)
            assert session.mixture.shares == pytest.approx((0.5, 0.5))


def test_weights_that_a_user_fixed_stay(family: Family) -> None:
    memories = [MemoryOptions(family.memory, 0.3)]
    with closing(Engine(family.base, memories, ONE_THREAD)) as engine:
        assert engine.mixture(LEARNING).rule() is None
        with closing(begin(engine, prompts(1)[0])) as session:
            assert {sample.weights for sample in finish(engine, session)} == {(0.7, 0.3)}
    with closing(Engine(family.base, [MemoryOptions(family.memory)], ONE_THREAD)) as engine:
        assert engine.mixture(replace(LEARNING, total=0.4)).rule() is None
        assert engine.mixture(LEARNING).rule() is not None
        assert engine.mixture().rule() is None
