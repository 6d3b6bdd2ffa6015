"""How many tokens to draft: expectations against simulation, and the choice among made-up costs."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge.engine import Engine
from memdec_edge.engine.drafting import (
    DECAY,
    FOUND_LENGTHS,
    KEPT,
    PRIOR,
    STALE,
    TRIALS,
    Acceptance,
    Cost,
    DraftPolicy,
    Plan,
    expected_tokens,
)
from memdec_edge.errors import Cancelled
from memdec_edge.options import GenerationOptions, MemoryOptions, SamplingOptions
from tests.conftest import Family
from tests.support.plain import (
    GREEDY,
    ONE_THREAD,
    PENALISED,
    USUAL,
    WARM,
    Plain,
    finish,
    prompts,
    same,
    until_stopped,
    watched,
)

WHO = (0,)
Costs = Callable[[int], float]  # seconds of the base by rows


def rate(acceptance: float, length: int, base: Costs, step: float) -> float:
    """Tokens per second, written out: a round drafts, verifies, and reads its last draft if all of it was right."""
    tokens = sum(acceptance**i for i in range(length + 1))
    return tokens / (base(length + 1) + step * (length + acceptance**length))


def play(
    policy: DraftPolicy, acceptance: float, base: Costs, step: float, rounds: int, lengths: range = range(8)
) -> list[int]:
    """Let the policy choose and tell it what its choices cost; the lengths that it chose."""
    chosen = []
    for _ in range(rounds):
        plan = policy.choose([acceptance], 0, WHO, lengths)
        chosen.append(plan.length)
        policy.add_base(plan.length + 1, plan.overlap, base(plan.length + 1))
        policy.add_memory(WHO, 1, step)
    return chosen


@pytest.mark.parametrize(("acceptance", "length"), [(0.0, 4), (0.3, 0), (0.5, 1), (0.7, 5), (0.95, 16), (1.0, 8)])
def test_the_expected_tokens_of_a_round_are_those_of_a_simulation(acceptance: float, length: int) -> None:
    right = np.random.default_rng(0).random((100_000, length)) < acceptance
    emitted = 1 + np.cumprod(right, axis=1).sum(axis=1)
    error = emitted.std() / np.sqrt(len(emitted))
    assert expected_tokens(acceptance, length) == pytest.approx(emitted.mean(), abs=4 * error + 1e-9)


@given(st.floats(0, 1), st.integers(0, 16))
def test_one_more_drafted_token_brings_at_most_one_and_never_less(acceptance: float, length: int) -> None:
    gain = expected_tokens(acceptance, length + 1) - expected_tokens(acceptance, length)
    assert -1e-12 <= gain <= 1 + 1e-12
    assert 1 <= expected_tokens(acceptance, length) <= length + 1


def test_a_cost_is_the_median_of_the_last_and_forgets_the_first() -> None:
    cost = Cost()
    for index, seconds in enumerate([9.0, 1.0, 2.0, 3.0, 100.0, 2.5, 2.0]):
        cost.add(seconds, index)
        assert cost.seen == index
        assert cost.seconds == ([9.0, 1.0, 1.0, 2.0, 2.0, 2.5, 2.5][index])
    for _ in range(KEPT):
        cost.add(7.0, 8)
    assert cost.seconds == 7.0


@pytest.mark.parametrize("truth", [0.0, 0.2, 0.9, 1.0])
def test_the_running_acceptance_reaches_the_truth_and_stays_near(truth: float) -> None:
    random, acceptance = np.random.default_rng(1), Acceptance()
    assert acceptance.value == PRIOR
    seen = []
    for _ in range(400):
        hits = 0
        while hits < 4 and random.random() < truth:
            hits += 1
        acceptance.add(hits, rejected=hits < 4)
        seen.append(acceptance.value)
    assert abs(np.mean(seen[100:]) - truth) < 0.06
    acceptance.add(0, rejected=False)
    assert acceptance.value == seen[-1]
    acceptance.add(1, rejected=False)
    assert acceptance.value == pytest.approx(seen[-1] + DECAY * (1 - seen[-1]))


# rows 1 .. 8, in ms: a CPU whose kernels like four rows; one that likes none; a GPU; one where eight are cheap again
TABLES = {
    "four": [27, 51, 71, 40, 93, 101, 110, 94],
    "dear": [30, 60, 90, 120, 150, 180, 210, 240],
    "flat": [20, 20, 20, 20, 21, 21, 21, 22],
    "eight": [27, 55, 80, 100, 110, 90, 60, 35],
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("acceptance", [0.05, 0.4, 0.65, 0.85, 1.0])
@pytest.mark.parametrize("step", [0.1, 3.0, 25.0])
def test_the_best_length_of_any_table_is_found_and_kept(table: list[int], acceptance: float, step: float) -> None:
    def base(rows: int) -> float:
        return table[rows - 1] / 1e3

    rates = [rate(acceptance, length, base, step / 1e3) for length in range(8)]
    chosen = play(DraftPolicy(), acceptance, base, step / 1e3, 400)
    settled = chosen[8 * TRIALS + 8 :]
    often = max(set(settled), key=settled.count)
    assert rates[often] == pytest.approx(max(rates))
    assert all(rates[length] > 0.84 * max(rates) for length in settled)  # contenders are measured again
    assert settled.count(often) > 0.85 * len(settled)


def test_lengths_whose_costs_another_program_spoiled_are_found_again() -> None:
    policy = DraftPolicy()
    play(policy, 0.8, lambda rows: 0.020 if rows == 1 else 0.100, 0.001, 40)
    assert set(play(policy, 0.8, lambda rows: 0.020, 0.001, 800)) == {0}
    assert min(play(policy, 0.8, lambda rows: 0.020, 0.001, 2000)[-100:]) >= 4  # at less than half the cost of 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-3, 1.0), min_size=8, max_size=8), st.floats(0, 1), st.floats(0, 0.5), st.integers(0, 7))
def test_no_length_that_is_worse_than_drafting_nothing_is_kept(
    table: list[float], acceptance: float, step: float, longest: int
) -> None:
    def base(rows: int) -> float:
        return table[0] + (table[rows - 1] if rows > 1 else 0)  # more rows are never cheaper than one

    lengths = range(longest + 1)
    chosen = play(DraftPolicy(), acceptance, base, step, 300, lengths)
    assert set(chosen) <= set(lengths)
    rates = [rate(acceptance, length, base, step) for length in lengths]
    settled = chosen[len(lengths) * (TRIALS + 1) :]
    assert max(set(settled), key=settled.count) in [i for i in lengths if rates[i] >= (1 - 1e-9) * max(rates)]
    worse = [length for length in settled if rates[length] < rates[0]]
    assert len(worse) <= len(settled) * len(lengths) / STALE + len(lengths)


def test_each_length_that_may_win_is_tried_and_judged_by_more_than_its_first_time() -> None:
    chosen = play(DraftPolicy(), 0.9, lambda rows: 1.0, 0.001, 100)
    assert all(chosen.count(length) >= TRIALS for length in range(8))
    visits: list[int] = []

    def slow_at_first(rows: int) -> float:  # a GPU that compiles its kernels, say; the best length most of all
        visits.append(rows)
        return 50.0 if rows == 8 and visits.count(8) == 1 else 1.0

    assert play(DraftPolicy(), 0.9, slow_at_first, 0.001, 100)[-1] == 7


def test_lengths_that_could_not_win_at_the_cheapest_cost_known_are_left_alone() -> None:
    chosen = play(DraftPolicy(), 0.05, lambda rows: 0.030 * rows, 0.025, 100)
    assert chosen.count(0) > 90  # 1 token for 31 ms; at best 1.05 for 55
    assert max(chosen) <= 1


def test_the_choice_follows_acceptance_down_and_up_again() -> None:
    policy = DraftPolicy()

    def base(rows: int) -> float:
        return 0.027 + 0.006 * (rows - 1)

    assert play(policy, 0.9, base, 0.002, 100)[-1] >= 5
    low = play(policy, 0.02, base, 0.002, 50)[-10:]
    assert low.count(0) >= 9
    assert play(policy, 0.9, base, 0.002, 50)[-1] >= 5


def test_the_choice_follows_costs_that_change() -> None:
    policy = DraftPolicy()
    assert play(policy, 0.8, lambda rows: 0.030, 0.001, 100)[-1] == 7
    dear = play(policy, 0.8, lambda rows: 0.030 * rows, 0.001, 300)
    assert dear[-20:].count(0) >= 18
    assert dear.index(0) < 60


def test_a_contender_that_became_cheaper_is_noticed() -> None:
    policy = DraftPolicy()
    assert set(play(policy, 0.8, lambda rows: [0.030, 0.055, 9, 9, 9, 9, 9, 9][rows - 1], 0.0001, 40)[-10:]) == {0}
    chosen = play(policy, 0.8, lambda rows: [0.030, 0.045, 9, 9, 9, 9, 9, 9][rows - 1], 0.0001, 8 * STALE)
    assert set(chosen[-10:]) == {1}


def test_with_one_allowed_length_there_is_nothing_to_choose() -> None:
    assert DraftPolicy().choose([0.1], 0, WHO, range(16, 17)) == Plan(16, overlap=False)


def test_both_ways_of_decoding_are_tried_and_the_faster_one_stays() -> None:
    for faster in (False, True):
        policy, chosen = DraftPolicy((False, True)), list[Plan]()
        for _ in range(200):
            plan = policy.choose([0.7], 0, WHO, range(4))
            chosen.append(plan)
            policy.add_base(plan.length + 1, plan.overlap, 0.03 if plan.overlap == faster else 0.06)
            policy.add_memory(WHO, 1, 0.005)
        assert {plan.overlap for plan in chosen} == {False, True}
        assert [plan.overlap for plan in chosen[-30:]].count(faster) >= 28


def test_several_sessions_share_the_rows_of_a_round() -> None:
    """Two that draft beside one that does not: g drafted tokens each make 2 (g + 1) + 1 rows."""
    policy, rows = DraftPolicy(), set[int]()
    for _ in range(100):
        plan = policy.choose([0.9, 0.5], 1, WHO, range(3))
        rows.add(2 * (plan.length + 1) + 1)
        policy.add_base(2 * (plan.length + 1) + 1, plan.overlap, 0.03)
        policy.add_memory(WHO, 2, 0.001)
    assert rows == {3, 5, 7}
    assert policy.choose([0.9, 0.5], 1, WHO, range(3)).length == 2


# --- with models ----------------------------------------------------------------------------------------------------


def played(policy: DraftPolicy, promise: list[float], row: float, rounds: int = 200) -> list[Plan]:
    """What the policy chooses for one session without memories, where a pass costs 10 ms and `row` ms for each row."""
    chosen = []
    for _ in range(rounds):
        plan = policy.choose([None], 0, (), range(1), [promise], FOUND_LENGTHS if promise else ())
        policy.add_base(
            plan.drafted(None, promise) + 1, plan.overlap, 0.010 + row * plan.drafted(None, promise), plan.found
        )
        chosen.append(plan)
    return chosen


def test_an_index_drafts_as_far_as_its_matches_and_the_cost_of_rows_allow() -> None:
    assert played(DraftPolicy(), [0.9] * 16, 0.0001)[-1] == Plan(15, found=True)
    assert played(DraftPolicy(), [0.9, 0.8, 0.1, 0.1], 0.002)[-1].length == 3
    assert played(DraftPolicy(), [0.4] * 16, 0.008)[-1].length == 0
    assert played(DraftPolicy(), [], 0.0001)[-1].length == 0
    trials = [plan.length for plan in played(DraftPolicy(), [0.4] * 16, 0.008) if plan.length]
    assert trials == [3] * 3  # few, and none of those that four rows show to be too dear


def test_the_promise_of_a_match_is_what_its_class_has_kept() -> None:
    policy = DraftPolicy()
    assert policy.promise(0, 8) == []
    assert policy.promise(1, 8) == []  # a single token of match is right too seldom
    assert policy.promise(14, 4) == [policy.found[6].value] * 2 + [policy.found[7].value] * 2
    for _ in range(200):
        policy.add_found(8, False)
        policy.add_found(1, True)
        policy.add_found(0, True)
    assert policy.promise(16, 4) == []
    assert policy.promise(1, 3)[0] > 0.9


@pytest.mark.parametrize(("weight", "low", "high"), [(0.999, 0.9, 1.0), (0.001, 0.0, 0.35)])
def test_the_engine_measures_how_often_its_memories_are_right(
    family: Family, weight: float, low: float, high: float
) -> None:
    with closing(Engine(family.base, [MemoryOptions(family.memory, weight)], ONE_THREAD)) as engine:
        generation = GenerationOptions(ignore_eos=True)
        with closing(engine.session(prompts(1)[0], replace(WARM, seed=5), generation, limit=300)) as session:
            finish(engine, session)
            assert low <= session.acceptance.value <= high
            assert engine.policy.acceptance.value == session.acceptance.value  # what the next one starts from
            assert session.n_accepted <= session.n_drafted == engine.counters.drafted


def test_without_a_draft_the_guess_keeps_acceptance_up_to_date(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    for overlap in (False, True):
        options = replace(ONE_THREAD, memory_threads=1, threads=1)
        with closing(Engine(family.base, [MemoryOptions(family.memory, 0.999)], options)) as engine:
            if overlap and not engine.rounds.division:
                pytest.skip("one CPU: nothing decodes side by side")
            monkeypatch.setattr(engine.policy, "choose", lambda *_: Plan(0, overlap))  # noqa: B023
            engine.policy.acceptance.value = 0.1
            generation = GenerationOptions(ignore_eos=True)
            with closing(engine.session(prompts(1)[0], replace(WARM, seed=5), generation, limit=200)) as session:
                finish(engine, session)
                assert engine.counters.lengths.keys() == {0}
                assert session.acceptance.value > 0.9


@pytest.mark.parametrize("sampling", [GREEDY, WARM, USUAL, PENALISED], ids=["greedy", "warm", "usual", "penalised"])
def test_decoding_side_by_side_gives_the_same_text_and_can_be_stopped(
    family: Family, sampling: SamplingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = replace(sampling, seed=6)
    prompt = prompts(2)[1]
    with closing(Plain(family.base, [(family.memory, 0.6)])) as truth:
        with closing(
            Engine(family.base, [MemoryOptions(family.memory, 0.6)], replace(ONE_THREAD, threads=1))
        ) as engine:
            if not engine.rounds.division:
                pytest.skip("one CPU: nothing decodes side by side")
            texts = {}
            for draft in (0, 3, 8, None):
                for overlaps in ((False,), (True,), (False, True)):
                    monkeypatch.setattr(engine.policy, "overlaps", overlaps)
                    generation = GenerationOptions(draft=draft, ignore_eos=True)
                    with closing(engine.session(prompt, sampling, generation, limit=76)) as session:
                        texts[draft, overlaps] = finish(engine, session)
            expected = texts[0, (False,)]
            assert all(same(truth, prompt, found, expected, sampling) for found in texts.values())
            monkeypatch.setattr(engine.policy, "overlaps", (True,))
            for k in range(12):
                left = iter(range(k, -1, -1))

                def stop(left: Iterator[int] = left) -> None:
                    if next(left, 1) == 0:
                        engine.cancel()

                generation = GenerationOptions(draft=3, ignore_eos=True)
                with closing(engine.session(prompt, sampling, generation, limit=76)) as session:
                    session.prefill()
                    base, memory = session.contexts
                    with watched(monkeypatch, base, stop), watched(monkeypatch, memory, stop):
                        [found] = until_stopped(engine, [session])
                    assert same(truth, prompt, found + finish(engine, session), expected, sampling)


def test_ctrl_c_beside_a_decode_of_the_memories_waits_for_it_before_anything_is_rolled_back(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Engine(family.base, [MemoryOptions(family.memory, 0.6)], ONE_THREAD)) as engine:
        if not engine.rounds.division:
            pytest.skip("one CPU: nothing decodes side by side")
        monkeypatch.setattr(engine.policy, "overlaps", (True,))
        generation = GenerationOptions(draft=0, ignore_eos=True)
        with closing(engine.session(prompts(1)[0], GREEDY, generation, limit=40)) as session:
            expected = finish(engine, session)
        done: list[bool] = []

        def interrupt() -> None:  # on the worker, after the memory's decode; the base is done and waits
            time.sleep(0.2)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.2)
            done.append(True)

        with closing(engine.session(prompts(1)[0], GREEDY, generation, limit=40)) as session:
            session.prefill()
            with watched(monkeypatch, session.contexts[1], after=interrupt):
                with pytest.raises((KeyboardInterrupt, Cancelled)):
                    engine.step([session])[0]
                assert done
            with closing(Plain(family.base, [(family.memory, 0.6)])) as truth:
                assert same(truth, prompts(1)[0], finish(engine, session), expected, GREEDY)
