"""Slots and cells: who is let in, what is given back, and how long a session may become."""

import resource
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from memdec_edge.engine import Engine, MemoryMixture, Session
from memdec_edge.errors import BusyError, Cancelled, ContextError, OptionError
from memdec_edge.options import GenerationOptions, MemoryOptions
from tests.conftest import Family
from tests.support.plain import (
    FOUR,
    GREEDY,
    ONE_THREAD,
    PENALISED,
    USUAL,
    WARM,
    WORDS,
    Plain,
    cells,
    finish,
    prompts,
    watched,
)
from tests.support.tiny import tiny_checkpoint, tiny_gguf


def test_slots_that_are_taken_are_named_with_numbers(fresh: Engine) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(closing(fresh.session([1], limit=10)))
        asks: list[Callable[[], Session]] = [
            partial(fresh.session, [1], limit=10),
            partial(fresh.fork, fresh._sessions[0]),
        ]
        for ask in asks:
            with pytest.raises(BusyError, match=r"1 slots wanted and 0 of 4 are free; .*`n_seq`") as error:
                ask()
            assert (error.value.kind, error.value.http_status) == ("slots", 503)
    fresh.session([1], limit=10).close()


def test_cells_that_are_reserved_are_named_with_numbers(fresh: Engine) -> None:
    with closing(fresh.session([1] * 100, limit=300)) as first:
        with pytest.raises(BusyError, match=r"213 cells wanted and 212 of 512 are free; .*`n_ctx`") as error:
            fresh.session([1], limit=213)
        assert (error.value.wanted, error.value.free, error.value.total) == (213, 212, 512)
        with closing(fresh.session([1], limit=212)):
            first.extend([1] * 200)
            with pytest.raises(ContextError, match="a prompt of 301 tokens do not fit the context of 300"):
                first.extend([1])
        first.rewind(1)
        fresh.session([1], limit=212).close()
    with pytest.raises(ContextError, match="a prompt of 1 tokens and 512 new ones do not fit the context of 512"):
        fresh.session([1], limit=513)
    with pytest.raises(OptionError, match="limit is 8: must be >= 9"):
        fresh.session([1] * 9, limit=8)
    fresh.session([1], limit=512).close()  # whatever was refused took nothing


def test_sessions_never_need_more_cells_than_they_reserved(fresh: Engine) -> None:
    generation = GenerationOptions(draft=16, ignore_eos=True)
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(closing(fresh.session(prompt, WARM, generation, limit=128))) for prompt in prompts(4)
        ]
        while not all(session.finished for session in sessions):
            fresh.step(sessions)
        assert all(len(session.tokens) == 128 for session in sessions)
        assert cells(fresh) == [4 * 127, 4 * 127]


def test_the_start_that_a_closed_session_left_behind_is_not_decoded_again(
    fresh: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = (prompts(2)[1] * 20)[:200]
    with closing(fresh.session(prompt, GREEDY, limit=210)) as session:
        first = finish(fresh, session)
    fresh.session([3], limit=5).close()  # takes another slot
    with ExitStack() as stack:
        again = stack.enter_context(closing(fresh.session([*prompt[:150], 7, 8], GREEDY, limit=170)))
        watches = [stack.enter_context(watched(monkeypatch, context)) for context in again.contexts]
        again.prefill()
        assert [[len(prefix) for decode in decodes for prefix in decode] for decodes in watches] == [[151], [151]]
    with closing(fresh.session(prompt, GREEDY, limit=210)) as session:
        assert [sample.token for sample in finish(fresh, session)] == [sample.token for sample in first]


def test_what_a_closed_session_left_is_never_taken_for_a_prompt_of_its_length(fresh: Engine, family: Family) -> None:
    generation = GenerationOptions(ignore_eos=True)
    with closing(Plain(family.base, [(family.memory, 0.6)])) as truth:
        for prompt in prompts(12):  # more than there are slots, all of one length, and as long as what was left
            with closing(fresh.session(prompt, GREEDY, generation, limit=20)) as session:
                sample = fresh.step([session])[0][0]
                assert sample.log_prob == pytest.approx(truth.log_probs(prompt)[sample.token], abs=1e-3)
                session.rewind(len(prompt) - 1)


def test_what_closed_sessions_left_gives_way_to_new_ones(fresh: Engine) -> None:
    for start in range(6):
        with closing(fresh.session([start + 1, *range(1, 360)], GREEDY, limit=380)) as session:
            finish(fresh, session)
        assert max(cells(fresh)) <= 512
    assert len(fresh.context.tokens[session.slot]) >= 360  # the last one stays


def rss() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_a_thousand_short_sessions_through_four_slots_leak_nothing(engine: Engine) -> None:
    random = np.random.default_rng(0)

    def some(number: int) -> None:
        running: list[Session] = []
        for index in range(number):
            while len(running) > int(random.integers(0, 4)):
                running.pop(int(random.integers(len(running)))).close()
            if running and random.random() < 0.3:
                running.append(engine.fork(running[-1], index))
            else:
                prompt = random.integers(1, 400, int(random.integers(1, 20))).tolist()
                sampling = [USUAL, PENALISED, WORDS][index % 3]
                generation = GenerationOptions(draft=index % 5 or None)
                running.append(engine.session(prompt, replace(sampling, seed=index), generation, limit=32))
            if random.random() < 0.1 and not all(session.finished for session in running):
                engine.cancel()
                with pytest.raises(Cancelled):
                    engine.step(running)
            engine.step(running)
            assert max(cells(engine)) <= 1024
        for session in running:
            session.close()

    some(200)  # until every buffer has its size
    before = rss()
    some(1000)
    assert rss() - before < 4 << 20
    assert sorted(engine.cells._idle) == [0, 1, 2, 3]
    assert [memory.users for memory in engine.memories] == [0, 0]
    engine.session([1], limit=engine.longest()).close()


# --- limits of the models -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory that was trained for 48 tokens."""
    folder = tmp_path_factory.mktemp("short")
    checkpoint = tiny_checkpoint(folder / "short", seed=6, n_ctx=48)
    return tiny_gguf(folder / "memdec-short.gguf", checkpoint, role="memory", base=family.base)


def test_a_memory_of_a_shorter_context_sets_the_limit_and_errors_name_it(family: Family, short: Path) -> None:
    with closing(Engine(family.base, [MemoryOptions(short, 0.6)], replace(ONE_THREAD, n_ctx=512))) as engine:
        assert (engine.n_ctx, engine.longest()) == (512, 48)
        [warning] = engine.warnings
        assert warning == f"{short} was trained for 48 tokens: a session that mixes it holds at most that, not 512"
        with pytest.raises(ContextError, match="a prompt of 49 tokens do not fit the context of 48"):
            engine.session([1] * 49)
        generation = GenerationOptions(draft=16, ignore_eos=True)
        with closing(engine.session([1] * 8, WARM, generation)) as session:
            assert len(finish(engine, session)) == 40
            assert session.finished == "length"


def test_with_several_slots_each_session_keeps_to_what_the_models_were_trained_for(family: Family, short: Path) -> None:
    with closing(Engine(family.base, [MemoryOptions(short, 0.6)], replace(FOUR, n_ctx=0))) as engine:
        assert (engine.n_ctx, engine.longest()) == (512, 48)  # as the base was trained
    with closing(Engine(family.base, [MemoryOptions(short, 0.6)], FOUR)) as engine:
        assert (engine.n_ctx, engine.longest()) == (1024, 48)
        assert engine.memories[0].context.n_ctx < 1024  # what four sessions can use of it
        with pytest.raises(ContextError, match="do not fit the context of 48"):
            engine.session([1], limit=49)


def test_a_memory_of_a_shorter_context_binds_only_sessions_that_mix_it_and_only_while_it_is_there(
    family: Family, short: Path
) -> None:
    with closing(Engine(family.base, [MemoryOptions(short, 0.6)], replace(ONE_THREAD, n_ctx=512))) as engine:
        with closing(engine.session([1] * 100, mixture=MemoryMixture.of([(engine.memories[0], 0.0)]))) as session:
            assert session.limit == 512  # weight 0: it does not run
        engine.remove(engine.memories[0])
        assert (engine.longest(), engine.warnings) == (512, [])
        with closing(engine.session([1] * 100)) as session:
            assert len(engine.step([session])[0]) == 1
