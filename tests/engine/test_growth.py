"""Sessions that reserve cells as they grow, give all of them to others for a while, and share a beginning."""

from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
import pytest

from memdec_edge.engine import Engine, MemoryMixture
from memdec_edge.engine.scoring import Scoring
from memdec_edge.errors import BusyError, DecodeError
from memdec_edge.options import GenerationOptions, MixtureOptions, SamplingOptions
from tests.conftest import Family
from tests.support.plain import GREEDY, PENALISED, WARM, WORDS, Plain, cells, finish, prompts, same, watched

ENDLESS = GenerationOptions(ignore_eos=True, draft=4)
SEEDED = replace(WARM, seed=3)


def test_a_session_that_is_finished_by_its_length_goes_on_once_it_has_more_cells(fresh: Engine, family: Family) -> None:
    [prompt] = prompts(1)
    with closing(fresh.session(prompt, SEEDED, ENDLESS, limit=60)) as whole:
        expected = finish(fresh, whole)
    with closing(fresh.session(prompt, SEEDED, ENDLESS, limit=20)) as session:
        found = finish(fresh, session)
        assert (session.finished, len(session.tokens)) == ("length", 20)
        for limit in (21, 40, 60):
            session.grow(limit)
            assert session.finished is None
            found += finish(fresh, session)
        assert len(session.tokens) == 60
    with closing(Plain(family.base, [(family.memory, 0.6)])) as truth:
        assert same(truth, prompt, found, expected, SEEDED)


def test_a_session_cannot_grow_into_the_cells_of_others_and_stays_as_it_is(fresh: Engine) -> None:
    with closing(fresh.session([1, 2], GREEDY, limit=100)) as one, closing(fresh.session([3], limit=400)):
        assert fresh.cells.free == 12
        with pytest.raises(BusyError, match="13 cells wanted and 12 of 512 are free"):
            one.grow(113)
        assert one.limit == 100
        one.grow(112)
        assert fresh.cells.free == 0
    assert fresh.cells.free == 512


@pytest.mark.parametrize(
    "sampling", [replace(one, seed=3) for one in (WARM, PENALISED, WORDS)], ids=["warm", "penalised", "grammar"]
)
def test_a_suspended_session_goes_on_with_the_text_that_it_would_have_had(
    fresh: Engine, family: Family, sampling: SamplingOptions
) -> None:
    [prompt, other] = prompts(2)
    with closing(fresh.session(prompt, sampling, ENDLESS, limit=60)) as whole:
        expected = finish(fresh, whole)
    with closing(fresh.session(prompt, sampling, ENDLESS, limit=60)) as session:
        found = fresh.step([session])[0] + fresh.step([session])[0]
        session.suspend()
        assert fresh.cells.free == 512
        with pytest.raises(DecodeError, match="suspended"):
            fresh.step([session])
        with ExitStack() as stack:  # others overwrite every slot meanwhile
            for start in range(4):
                stack.enter_context(closing(fresh.session([start, *other] * 8, GREEDY, limit=128))).prefill()
            with pytest.raises(BusyError):
                session.resume(60)
        session.resume(60)
        for context in session.contexts:  # nothing of the others is left in its slot
            assert context.shared(session.tokens, session.slot) == len(context.tokens[session.slot])
        found += finish(fresh, session)
    with closing(Plain(family.base, [(family.memory, 0.6)])) as truth:
        assert same(truth, prompt, found, expected, sampling)
    assert fresh.cells.free == 512


def test_a_suspended_session_may_be_closed(fresh: Engine) -> None:
    session = fresh.session([1, 2, 3], limit=20)
    session.suspend()
    session.close()
    assert (fresh.cells.free, sorted(fresh.cells._idle), [m.users for m in fresh.memories]) == (512, [0, 1, 2, 3], [0])


def test_a_beginning_that_an_open_session_holds_is_decoded_and_stored_once(
    fresh: Engine, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, first, second = (prompts(3, 100)[0], *prompts(2, 8))
    with closing(fresh.session(system + first, SEEDED, ENDLESS, limit=160)) as one:
        one.prefill()
        with ExitStack() as stack:
            two = stack.enter_context(closing(fresh.session(system + second, SEEDED, ENDLESS, limit=160)))
            assert two.n_cached == 100
            assert fresh.cells.free == 512 - 160 - 60
            watches = [stack.enter_context(watched(monkeypatch, context)) for context in two.contexts]
            two.prefill()
            assert [sum(map(len, decodes)) for decodes in watches] == [7, 7]
            found = finish(fresh, two)
        assert fresh.cells.free == 512 - 160
        rest = finish(fresh, one)  # its cells are untouched
    with closing(Plain(family.base, [(family.memory, 0.6)])) as truth:
        for prompt, samples in ((system + second, found), (system + first, rest)):
            tokens = list(prompt)
            for sample in samples[:5]:
                assert sample.log_prob == pytest.approx(truth.log_probs(tokens)[sample.token], abs=1e-3)
                tokens.append(sample.token)
    cells(fresh)


def test_borrowed_cells_survive_the_session_that_lent_them(fresh: Engine, family: Family) -> None:
    system, [end] = prompts(3, 100)[0], prompts(1, 8)
    with closing(fresh.session([*system, 1], GREEDY, limit=120)) as one:
        one.prefill()
        two = fresh.session(system + end, GREEDY, ENDLESS, limit=140)
    for start in range(3):  # takes what the first left
        with closing(fresh.session([start, *prompts(9)[8]] * 10, GREEDY, limit=300)) as third:
            third.prefill()
    with closing(Plain(family.base, [(family.memory, 0.6)])) as truth, closing(two):
        sample = fresh.step([two])[0][0]
        assert sample.log_prob == pytest.approx(truth.log_probs(system + end)[sample.token], abs=1e-3)


def test_evidence_that_the_lender_did_not_read_as_such_is_read_again(fresh: Engine) -> None:
    fixed = MemoryMixture.of([(fresh.memories[0], 0.6)])
    learning = fixed._replace(learning=MixtureOptions(evidence=64))
    prompt = prompts(1, 100)[0]
    with closing(fresh.session(prompt, GREEDY, mixture=learning, limit=110)) as alone:
        alone.prefill()
        expected = alone.mixture
    for context in (fresh.context, fresh.memories[0].context):
        context.clear()
    with closing(fresh.session(prompt, GREEDY, mixture=fixed, limit=110)) as lender:  # notes no log-probs
        lender.prefill()
        with closing(fresh.session(prompt, GREEDY, mixture=learning, limit=110)) as session:
            session.prefill()
            np.testing.assert_allclose(session.mixture.weights, expected.weights, atol=1e-4)
            assert 30 < fresh.cells.shared(session.holding) < 40  # what stands before the evidence
    cells(fresh)


# --- scores of a prompt ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.6, 0.0])
def test_each_token_of_a_prompt_is_scored_by_what_stands_before_it(
    fresh: Engine, family: Family, weight: float
) -> None:
    [prompt] = prompts(1, 90)
    mixture = MemoryMixture.of([(fresh.memories[0], weight)])
    with closing(fresh.session((), WARM, mixture=mixture, limit=100)) as session:
        session.extend(prompt)
        scoring = Scoring(session, 3)
        assert [scoring.read(40), scoring.read(40), scoring.read(40)] == [49, 9, 0]
    with closing(Plain(family.base, [(family.memory, weight)] if weight else [])) as truth:
        for at in (1, 2, 39, 40, 41, 63, 64, 65, 89):
            row, score = truth.log_probs(prompt[:at]), scoring.scores[at - 1]
            assert score.token == prompt[at]
            assert score.log_prob == pytest.approx(row[prompt[at]], abs=1e-3)
            assert score.top
            assert [one.log_prob for one in score.top.mixture] == pytest.approx(sorted(row)[:-4:-1], abs=1e-3)


def test_scores_follow_weights_that_learn_from_the_tokens_before(fresh: Engine) -> None:
    [prompt] = prompts(1, 40)
    learning = MemoryMixture.of([(fresh.memories[0], 0.6)], MixtureOptions())
    with closing(fresh.session((), WARM, mixture=learning, limit=100)) as session:
        session.extend(prompt)
        scoring = Scoring(session, 0)
        scoring.read(100)
        weights = [score.weights[1] for score in scoring.scores]
        assert weights[0] == pytest.approx(0.6)
        assert len(set(weights)) == 39
        sample = fresh.step([session])[0][0]  # and then it goes on
        assert sample.token >= 0
