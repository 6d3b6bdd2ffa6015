"""Many timelines in one pair of contexts, each as if alone; rewinding and forking."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
import pytest

from memdec_edge.engine import Engine, MemoryMixture, Sampled, Session
from memdec_edge.errors import BusyError, NumericsError
from memdec_edge.options import GenerationOptions, SamplingOptions
from tests.conftest import Family
from tests.support.plain import (
    GREEDY,
    PENALISED,
    WARM,
    WORDS,
    Plain,
    cells,
    finish,
    prompts,
    same,
    until_stopped,
    watched,
)

SHARES = [(0.6, 0.0), (0.3, 0.4), (0.0, 0.7), (0.0, 0.0)]  # of `memory` and `padded`
CHOICES = list(zip(SHARES, [WARM, PENALISED, WORDS, GREEDY], [3, 8, None, 4], [64, 50, 40, 30], strict=True))


def begin(engine: Engine, index: int, prompt: list[int]) -> Session:
    """The session of CHOICES[index]."""
    weights, sampling, draft, count = CHOICES[index]
    return engine.session(
        prompt,
        replace(sampling, seed=index),
        GenerationOptions(draft=draft, ignore_eos=True),
        mixture=MemoryMixture.of(zip(engine.memories, weights, strict=True)),
        limit=len(prompt) + count,
    )


def truth_of(family: Family, index: int) -> closing[Plain]:
    pairs = zip((family.memory, family.padded), SHARES[index], strict=True)
    return closing(Plain(family.base, [(path, weight) for path, weight in pairs if weight]))


@pytest.fixture(scope="module")
def alone(engine: Engine) -> list[list[Sampled]]:
    """What each of CHOICES emits by itself."""
    found = []
    for index, prompt in enumerate(prompts(4)):
        with closing(begin(engine, index, prompt)) as session:
            found.append(finish(engine, session))
    return found


# --- side by side ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joins", [(0, 0, 0, 0), (0, 3, 5, 9), (9, 5, 3, 0)], ids=["together", "in turn", "reversed"])
def test_side_by_side_each_session_emits_what_it_emits_alone(
    family: Family, engine: Engine, alone: list[list[Sampled]], joins: tuple[int, ...]
) -> None:
    found: list[list[Sampled]] = [[], [], [], []]
    with ExitStack() as stack:
        running: dict[int, Session] = {}
        for rounds in range(200):
            for index, prompt in enumerate(prompts(4)):
                if joins[index] == rounds:
                    running[index] = stack.enter_context(closing(begin(engine, index, prompt)))
            for index, samples in zip(running, engine.step(list(running.values())), strict=True):
                found[index] += samples
                assert bool(samples) or running[index].finished
            for index in [index for index, session in running.items() if session.finished]:
                running.pop(index).close()
    for index, prompt in enumerate(prompts(4)):
        with truth_of(family, index) as truth:
            assert same(truth, prompt, found[index], alone[index], replace(CHOICES[index][1], seed=index))
    cells(engine)


def test_a_session_may_pause_while_others_run(engine: Engine, family: Family, alone: list[list[Sampled]]) -> None:
    with closing(begin(engine, 0, prompts(4)[0])) as first, closing(begin(engine, 1, prompts(4)[1])) as second:
        found = engine.step([first])[0] + engine.step([first])[0]
        finish(engine, second)
        found += finish(engine, first)
    with truth_of(family, 0) as truth:
        assert same(truth, prompts(4)[0], found, alone[0], replace(WARM, seed=0))


def test_a_long_prompt_is_read_while_others_run_and_changes_nothing(
    engine: Engine, family: Family, alone: list[list[Sampled]]
) -> None:
    with closing(begin(engine, 0, prompts(4)[0])) as first:
        found = engine.step([first])[0]
        with closing(engine.session((prompts(9)[8] * 40)[:300], GREEDY, limit=310)) as long:
            samples, others = engine.step([first, long])
            assert others
            found += samples
            long.prefill()
            found += finish(engine, first)
    with truth_of(family, 0) as truth:
        assert same(truth, prompts(4)[0], found, alone[0], replace(WARM, seed=0))


def test_a_prompt_read_in_pieces_between_the_steps_of_another_gives_what_it_gives_at_once(fresh: Engine) -> None:
    prompt = (prompts(9)[8] * 40)[:200]
    with (
        closing(fresh.session(prompt, GREEDY, limit=210)) as whole,
        closing(fresh.session([7, 8], WARM, limit=60)) as other,
    ):
        with closing(fresh.session(prompt, GREEDY, limit=210)) as long:  # in a slot of its own: `whole` is open
            left = []
            for _ in range(4):
                left.append(long.prefill(70))
                assert fresh.step([other])[0]
            assert left == [129, 59, 0, 0]
            assert [len(context.tokens[long.slot]) for context in long.contexts] == [199, 199]
            np.testing.assert_allclose(long.logits(), whole.logits(), atol=1e-3)


def test_a_stop_leaves_all_sessions_of_the_round_where_they_stood(
    engine: Engine, family: Family, alone: list[list[Sampled]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(8):
        left = iter(range(k, -1, -1))

        def stop(left: Iterator[int] = left) -> None:
            if next(left, 1) == 0:
                engine.cancel()

        with ExitStack() as stack:
            sessions = [stack.enter_context(closing(begin(engine, i, prompts(4)[i]))) for i in range(4)]
            found = engine.step(sessions)
            with ExitStack() as watches:
                for context in sessions[1].contexts:
                    watches.enter_context(watched(monkeypatch, context, stop))
                for kept, samples in zip(found, until_stopped(engine, sessions), strict=True):
                    kept += samples
            for index, session in enumerate(sessions):
                with truth_of(family, index) as truth:
                    samples = found[index] + finish(engine, session)
                    assert same(truth, prompts(4)[index], samples, alone[index], replace(CHOICES[index][1], seed=index))


# --- rewind and fork ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, WARM, PENALISED, WORDS], ids=["greedy", "warm", "penalised", "grammar"])
def test_after_a_rewind_the_same_text_comes_again(fresh: Engine, family: Family, sampling: SamplingOptions) -> None:
    prompt, sampling = prompts(7)[6], replace(sampling, seed=8)
    generation = GenerationOptions(draft=4, ignore_eos=True)
    with closing(Plain(family.base, [(family.memory, 0.6)])) as truth:
        with closing(fresh.session(prompt, sampling, generation, limit=len(prompt) + 50)) as session:
            first = finish(fresh, session)
            for length in (50, 49, 30, 31, 1, 0):
                session.rewind(len(prompt) + length)
                assert session.tokens == [*prompt, *(sample.token for sample in first[:length])]
                assert session.finished == ("length" if length == 50 else None)
                assert same(truth, prompt, first[:length] + finish(fresh, session), first, sampling)
            session.rewind(5)
            assert len(finish(fresh, session)) == len(prompt) + 50 - 5


def test_what_somebody_else_says_after_a_rewind_counts_and_penalties_forget_what_was_taken_back(
    fresh: Engine, family: Family
) -> None:
    prompt, said = prompts(2)
    sampling, generation = replace(PENALISED, seed=2), GenerationOptions(draft=3, ignore_eos=True)
    with closing(fresh.session([*prompt, *said], sampling, generation, limit=64)) as session:
        expected = finish(fresh, session)
    with closing(fresh.session(prompt, sampling, generation, limit=64)) as session:
        finish(fresh, session)
        session.rewind(len(prompt))
        session.extend(said)
        found = finish(fresh, session)
    with closing(Plain(family.base, [(family.memory, 0.6)])) as truth:
        assert same(truth, [*prompt, *said], found, expected, sampling)


@pytest.mark.parametrize("sampling", [WARM, PENALISED, WORDS], ids=["warm", "penalised", "grammar"])
@pytest.mark.parametrize("first_out", ["origin", "fork"])
def test_a_fork_goes_on_like_its_origin_and_with_another_seed_differently(
    fresh: Engine, family: Family, sampling: SamplingOptions, first_out: str
) -> None:
    prompt, sampling = prompts(3)[1], replace(sampling, seed=5)
    generation = GenerationOptions(draft=3, ignore_eos=True)
    with ExitStack() as stack:
        truth = stack.enter_context(closing(Plain(family.base, [(family.memory, 0.6)])))
        origin = stack.enter_context(closing(fresh.session(prompt, sampling, generation, limit=60)))
        begun = fresh.step([origin])[0] + fresh.step([origin])[0] + fresh.step([origin])[0]
        twin, other = (stack.enter_context(closing(fresh.fork(origin, seed))) for seed in (None, 6))
        assert twin.tokens == other.tokens == origin.tokens
        continuations: list[list[Sampled]] = [[], [], []]
        for _ in range(3):
            for samples, more in zip(continuations, fresh.step([origin, twin, other]), strict=True):
                samples += more
        (origin if first_out == "origin" else twin).close()
        for samples, session in zip(continuations, (origin, twin, other), strict=True):
            if session is not (origin if first_out == "origin" else twin):
                samples += finish(fresh, session)
        shorter, longer = sorted(continuations[:2], key=len)
        assert len(shorter) >= 3
        assert same(truth, origin.tokens[: len(prompt) + len(begun)], shorter, longer[: len(shorter)], sampling)
        assert len(longer) == 60 - len(prompt) - len(begun)
        assert [sample.token for sample in continuations[2]] != [sample.token for sample in longer]
    with closing(fresh.session(prompt, sampling, generation, limit=60)) as plainly:
        with closing(Plain(family.base, [(family.memory, 0.6)])) as truth:
            assert same(truth, prompt, begun + longer, finish(fresh, plainly), sampling)
    cells(fresh)


def test_forks_share_cells_and_admission_counts_them_once(fresh: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = (prompts(30)[29] * 40)[:440]
    with ExitStack() as stack:
        generation = GenerationOptions(draft=2, ignore_eos=True)
        origin = stack.enter_context(closing(fresh.session(prompt, WARM, generation, limit=464)))
        origin.prefill()
        decodes = stack.enter_context(watched(monkeypatch, fresh.context))
        forks = [stack.enter_context(closing(fresh.fork(origin, seed))) for seed in (1, 2)]
        assert decodes == []
        with pytest.raises(BusyError) as error:  # 440 + 3 * 24 = 512
            fresh.fork(origin, 3)
        assert (error.value.kind, error.value.wanted, error.value.free, error.value.total) == ("cells", 24, 0, 512)
        while not origin.finished:
            fresh.step([origin, *forks])
        for fork in forks:
            finish(fresh, fork)
        assert all(len(session.tokens) == 464 for session in (origin, *forks))
        assert len({tuple(session.tokens) for session in (origin, *forks)}) == 3
        origin.close()
        forks[0].close()
        with closing(fresh.session([5] * 20, limit=512 - 464)):
            pass


def test_a_grammar_without_a_way_on_ends_its_session_and_the_others_go_on(fresh: Engine) -> None:
    stuck, endless = replace(WARM, grammar='root ::= "ab"'), GenerationOptions(ignore_eos=True, draft=2)
    with ExitStack() as stack:
        bad = stack.enter_context(closing(fresh.session([5, 6, 7], stuck, endless, limit=60)))
        good = stack.enter_context(closing(fresh.session([5, 6, 7], WARM, endless, limit=20)))
        while not bad.finished and not good.finished:
            fresh.step([bad, good])
        assert (bad.finished, good.finished) == ("error", None)
        assert isinstance(bad.error, NumericsError)
        assert "the grammar allows no further token" in str(bad.error)
        assert fresh.base.piece(bad.tokens[-1]).endswith(b"b")
        assert fresh.step([bad, good])[0] == []
        assert len(finish(fresh, good)) > 0
        bad.rewind(2)  # gone back, it may go on
        assert bad.finished is None
        assert bad.tokens == [5, 6]
    with (
        closing(fresh.session([5, 6, 7], stuck, endless, limit=60)) as alone,
        pytest.raises(NumericsError, match="no further"),
    ):
        finish(fresh, alone)
