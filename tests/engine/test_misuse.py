"""What a caller should not do: closed engines, closed sessions, strangers, forks of what was never read.

llama.cpp would end the process on most of it; here each is an error that says what is wrong, and others go on.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from memdec_edge.api import open_model
from memdec_edge.engine import Engine, MemoryMixture
from memdec_edge.errors import BusyError, DecodeError, OptionError
from memdec_edge.evaluation.perplexity import score_tokens
from memdec_edge.options import EvalOptions, GenerationOptions, MemoryOptions
from tests.conftest import Family
from tests.support.plain import ONE_THREAD, WARM

SMALL = replace(ONE_THREAD, n_seq=2, n_ctx=256)


@pytest.fixture
def engine(family: Family) -> Iterator[Engine]:
    with closing(Engine(family.base, [MemoryOptions(family.memory, 0.6)], SMALL)) as opened:
        yield opened


def test_a_stream_that_outlives_its_model_says_so(family: Family) -> None:
    with open_model(family.base, [family.memory], ONE_THREAD) as model:
        running, late = model.stream("The heart", WARM), model.stream("The heart", WARM)
        next(running)
    for stream in (running, late):
        with pytest.raises(DecodeError, match="closed"):
            list(stream)


def test_a_closed_engine_takes_no_session_and_a_closed_memory_decodes_nothing(family: Family, engine: Engine) -> None:
    memory = engine.memories[0]
    engine.remove(memory)
    for call in (lambda: memory.context.feed([1, 2]), lambda: memory.context.truncate(0)):
        with pytest.raises(DecodeError, match=r"memdec-tiny\.gguf is closed"):
            call()
    with pytest.raises(OptionError, match="it was removed; add it again"):
        engine.reweight(memory, 0.1)
    session = engine.session([1, 2], WARM)
    engine.close()
    for again in (
        lambda: engine.session([1, 2], WARM),
        lambda: engine.step([session]),
        lambda: engine.add(memory.options),
    ):
        with pytest.raises(DecodeError, match="is closed"):
            again()


def test_a_closed_session_does_nothing_more_and_lets_go_of_its_memories_once(engine: Engine) -> None:
    memory = engine.memories[0]
    closed, other = engine.session([1, 2, 3], WARM, limit=60), engine.session([1, 2, 3], WARM, limit=60)
    engine.step([closed])[0]
    closed.close()
    closed.close()
    tokens = list(closed.tokens)
    calls = (
        lambda: engine.step([closed]),
        closed.logits,
        lambda: engine.fork(closed),
        lambda: closed.rewind(1),
        lambda: closed.mix(MemoryMixture.of([])),
    )
    for call in calls:
        with pytest.raises(DecodeError, match="the session is closed"):
            call()
    assert closed.tokens == tokens
    engine.remove(memory)
    assert engine.step([other])[0]
    assert memory.users == 1
    other.close()


def test_a_session_is_stepped_by_its_own_engine_only(family: Family, engine: Engine) -> None:
    with closing(Engine(family.base, (), SMALL)) as stranger:
        session = stranger.session([1, 2, 3], WARM)
        with pytest.raises(DecodeError, match="another engine"):
            engine.step([session])
        assert session.tokens == [1, 2, 3]


def test_a_fork_of_a_prompt_that_was_not_read_yet_shares_it(engine: Engine) -> None:
    first = engine.session(list(range(1, 151)), WARM, GenerationOptions(ignore_eos=True), limit=162)
    second = engine.fork(first, seed=3)
    while not (first.finished and second.finished):
        engine.step([first, second])
    assert len(first.tokens) == len(second.tokens) == 162
    assert first.tokens != second.tokens


def test_a_fork_goes_back_into_the_shared_start_only_where_it_finds_cells(engine: Engine) -> None:
    first = engine.session(list(range(1, 151)), WARM, GenerationOptions(ignore_eos=True), limit=162)
    second = engine.fork(first, seed=3)
    with pytest.raises(BusyError, match="140 cells wanted and 82 of 256 are free"):
        second.rewind(10)
    assert len(second.tokens) == 150
    first.close()
    second.rewind(10)
    while not second.finished:
        engine.step([second])[0]


def test_an_evaluation_waits_until_no_session_is_open(engine: Engine) -> None:
    session = engine.session([1, 2, 3], WARM, limit=60)
    with pytest.raises(BusyError, match="2 slots wanted and 1 of 2 are free"):
        score_tokens(engine, ["The heart is a muscle."], EvalOptions(window=32, stride=16))
    session.close()
