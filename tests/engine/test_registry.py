"""Memories added, re-weighted and removed while sessions run; what goes wrong leaves everything as it was."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from memdec_edge.engine import Engine, Memory, MemoryMixture
from memdec_edge.errors import (
    BusyError,
    ContextError,
    DecodeError,
    MemdecError,
    MissingFileError,
    ModelFileError,
    OptionError,
    PairingError,
    RoleError,
)
from memdec_edge.options import GenerationOptions, MemoryOptions, SamplingOptions
from tests.conftest import PADDING, Family
from tests.support.plain import ONE_THREAD, PENALISED, WARM, Plain, finish, prompts, same, watched
from tests.support.tiny import tiny_checkpoint, tiny_gguf

OPTIONS = replace(ONE_THREAD, n_seq=3, n_ctx=512)
GENERATION = GenerationOptions(draft=3, ignore_eos=True)
SAMPLING = replace(WARM, seed=1)
PROMPT = prompts(1)[0]


@pytest.fixture
def engine(family: Family) -> Iterator[Engine]:
    with closing(Engine(family.base, [MemoryOptions(family.memory, 0.5)], OPTIONS)) as opened:
        yield opened


def is_open(memory: Memory) -> bool:
    try:
        return bool(memory.model.handle)
    except DecodeError:
        return False


# --- adding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [SAMPLING, replace(PENALISED, seed=1)], ids=["warm", "penalised"])
def test_a_running_session_that_takes_a_new_memory_gives_what_a_fresh_engine_with_both_gives(
    family: Family, engine: Engine, sampling: SamplingOptions
) -> None:
    with closing(engine.session(PROMPT, sampling, GENERATION, limit=60)) as session:
        begun = engine.step([session])[0] + engine.step([session])[0]
        with closing(engine.session(PROMPT, sampling, GENERATION, limit=60)) as other:
            added = engine.add(MemoryOptions(family.padded, 0.3))
            assert (engine.registry.version, engine.memories[1]) == (2, added)
            assert list(other.memories) == engine.memories[:1]
        session.mix(MemoryMixture.of([(engine.memories[0], 0.5), (added, 0.3)]))
        rest = finish(engine, session)
    text = [*PROMPT, *(sample.token for sample in begun)]
    both = [MemoryOptions(family.memory, 0.5), MemoryOptions(family.padded, 0.3)]
    with closing(Engine(family.base, both, OPTIONS)) as fresh:
        with closing(fresh.session(PROMPT, sampling, GENERATION, limit=60)) as session:
            session.mix(MemoryMixture.of([(fresh.memories[0], 0.5)]))
            twice = fresh.step([session])[0] + fresh.step([session])[0]
            assert [sample.token for sample in twice] == text[len(PROMPT) :]
            session.mix(MemoryMixture.of(zip(fresh.memories, (0.5, 0.3), strict=True)))
            expected = finish(fresh, session)
    with closing(Plain(family.base, [(family.memory, 0.5), (family.padded, 0.3)])) as truth:
        assert same(truth, text, rest, expected, sampling)
        row = truth.log_probs(text)
    assert rest[0].log_prob == pytest.approx(row[rest[0].token], abs=1e-3)


def test_new_sessions_mix_what_was_added_and_nothing_moves_for_the_others(family: Family, engine: Engine) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(closing(engine.session(PROMPT, SAMPLING, GENERATION, limit=60)))
        expected = finish(engine, stack.enter_context(closing(engine.session(PROMPT, SAMPLING, GENERATION, limit=60))))
        found = engine.step([first])[0]
        added = engine.add(MemoryOptions(family.padded, 0.3))
        second = stack.enter_context(closing(engine.session(PROMPT, SAMPLING, GENERATION, limit=60)))
        assert second.memories == (first.memories[0], added)
        while not first.finished:
            found += engine.step([first, second])[0]
        with closing(Plain(family.base, [(family.memory, 0.5)])) as truth:
            assert same(truth, PROMPT, found, expected, SAMPLING)


def test_a_memory_that_left_a_session_and_came_back_reads_only_what_it_missed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [memory] = engine.memories
    with closing(engine.session(PROMPT, SAMPLING, GenerationOptions(draft=0, ignore_eos=True), limit=90)) as session:
        engine.step([session])[0]
        with watched(monkeypatch, memory.context) as decodes:
            session.mix(MemoryMixture.of([]))
            for _ in range(6):
                engine.step([session])[0]
            assert decodes == []
            session.mix(MemoryMixture.of([(memory, 0.2)]))
            engine.step([session])[0]
            assert [len(prefixes) for prefixes in decodes] == [6, 1]


def test_a_memory_that_came_back_forgets_what_was_taken_back_meanwhile(engine: Engine, family: Family) -> None:
    [memory], other = engine.memories, prompts(2)[1]
    with closing(engine.session(PROMPT, SAMPLING, GENERATION)) as session:
        session.prefill()
        session.mix(MemoryMixture.of([]))
        session.rewind(4)
        session.extend(other[4:])  # as long as before
        session.mix(MemoryMixture.of([(memory, 0.5)]))
        token, log_prob, *_ = engine.step([session])[0][0]
    with closing(Plain(family.base, [(family.memory, 0.5)])) as truth:
        assert log_prob == pytest.approx(truth.log_probs([*PROMPT[:4], *other[4:]])[token], abs=1e-3)


def test_a_memory_that_forks_take_one_by_one_needs_cells_for_each(family: Family, engine: Engine) -> None:
    added = engine.add(MemoryOptions(family.padded, 0.3))
    half = MemoryMixture.of([(engine.memories[0], 0.5)])
    with closing(engine.session([5] * 300, SAMPLING, GENERATION, mixture=half, limit=320)) as origin:
        origin.prefill()
        with closing(engine.fork(origin, 2)) as twin:
            for session in (origin, twin):
                with pytest.raises(BusyError, match="300 cells wanted and 172 of 512 are free"):
                    session.mix(MemoryMixture.of([(added, 0.5)]))
                assert list(session.memories) == engine.memories[:1]
            engine.step([origin, twin])
        origin.mix(MemoryMixture.of([(added, 0.5)]))  # alone it may
        assert len(finish(engine, origin)) >= 10


def test_forks_hold_nothing_of_those_who_had_their_slot_before(family: Family, engine: Engine) -> None:
    added = engine.add(MemoryOptions(family.padded, 0.3))
    half = MemoryMixture.of([(engine.memories[0], 0.5)])
    with closing(engine.session([9], limit=200, mixture=half)) as origin:
        with closing(engine.session([7] * 200, limit=200)) as other:
            other.prefill()
        with closing(engine.session([1], limit=1)), closing(engine.fork(origin)) as twin:  # the first takes the last
            assert twin.slot == other.slot
            assert isinstance(added, Memory)
            assert added.context.tokens[twin.slot] == []


# --- removing and re-weighting --------------------------------------------------------------------------------------


def test_a_removed_memory_serves_its_sessions_to_their_end_and_is_then_closed(family: Family, engine: Engine) -> None:
    [memory] = engine.memories
    with closing(engine.session(PROMPT, SAMPLING, GENERATION, limit=60)) as session:
        expected = finish(engine, session)
    with closing(engine.session(PROMPT, SAMPLING, GENERATION, limit=60)) as session:
        found = engine.step([session])[0]
        engine.remove(memory)
        assert (engine.registry.version, engine.memories, is_open(memory)) == (2, [], True)
        with closing(engine.session(PROMPT, SAMPLING, GENERATION, limit=60)) as other:
            assert other.memories == ()
            with closing(engine.fork(session)) as twin:
                assert twin.memories == (memory,)
                found += finish(engine, session)
                session.close()
                assert is_open(memory)
                rest = finish(engine, twin)
                assert [sample.token for sample in rest] == [sample.token for sample in found[-len(rest) :]]
            assert not is_open(memory)
            with pytest.raises(OptionError, match=r"memdec-tiny\.gguf: it was removed; add it again"):
                other.mix(MemoryMixture.of([(memory, 0.5)]))
            assert len(finish(engine, other)) == 60 - len(PROMPT)
    with closing(Plain(family.base, [(family.memory, 0.5)])) as truth:
        assert same(truth, PROMPT, found, expected, SAMPLING)
    assert engine.registry.open_memories == []


def test_a_removed_memory_that_nobody_uses_is_closed_at_once_and_may_come_back(family: Family, engine: Engine) -> None:
    [memory] = engine.memories
    engine.remove(memory)
    engine.remove(memory)
    assert (is_open(memory), engine.registry.version) == (False, 2)
    with pytest.raises(OptionError, match="it was removed"):
        engine.session(PROMPT, mixture=MemoryMixture.of([(memory, 0.5)]))
    again = engine.add(MemoryOptions(family.memory, 0.5))
    assert again.number != memory.number
    engine.session(PROMPT).close()


def test_a_session_that_mixes_something_else_lets_a_removed_memory_go(family: Family, engine: Engine) -> None:
    [memory] = engine.memories
    with closing(engine.session(PROMPT, SAMPLING, GENERATION, limit=60)) as session:
        engine.step([session])[0]
        engine.remove(memory)
        session.mix(MemoryMixture.of([(memory, 0.1)]))
        assert is_open(memory)
        session.mix(MemoryMixture.of([]))
        assert not is_open(memory)
        finish(engine, session)


def test_a_new_weight_is_for_new_sessions(engine: Engine) -> None:
    [memory] = engine.memories
    with closing(engine.session(PROMPT, SAMPLING)) as first:
        engine.reweight(memory, 0.25)
        assert (first.mixture.weights, engine.mixture().weights, engine.registry.version) == ((0.5,), (0.25,), 2)
        engine.reweight(memory, None)
        assert (engine.mixture().weights, engine.registry.version) == ((0.6,), 3)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def missing(family: Family, folder: Path) -> MemoryOptions:
    return MemoryOptions(folder / "none.gguf")


def truncated(family: Family, folder: Path) -> MemoryOptions:
    (folder / "memdec-cut.gguf").write_bytes(family.memory.read_bytes()[:-1000])
    return MemoryOptions(folder / "memdec-cut.gguf")


def stranger(family: Family, folder: Path) -> MemoryOptions:
    return MemoryOptions(family.stranger)


def base(family: Family, folder: Path) -> MemoryOptions:
    return MemoryOptions(family.base)


def heavy(family: Family, folder: Path) -> MemoryOptions:
    return MemoryOptions(family.padded, 0.51)


@pytest.mark.parametrize(
    ("culprit", "error", "message"),
    [
        (missing, MissingFileError, r"none\.gguf: no such GGUF file"),
        (truncated, ModelFileError, r"memdec-cut\.gguf: llama\.cpp cannot load it"),
        (stranger, PairingError, "does not match"),
        (base, RoleError, "a plain model, not a memory"),
        (heavy, OptionError, r"0\.5 \+ 0\.51 = 1\.01: must be at most 1"),
    ],
)
def test_a_memory_that_cannot_be_added_leaves_everything_as_it_was(
    family: Family,
    engine: Engine,
    tmp_path: Path,
    culprit: Callable[[Family, Path], MemoryOptions],
    error: type[MemdecError],
    message: str,
) -> None:
    with closing(engine.session(PROMPT, SAMPLING, GENERATION, limit=60)) as session:
        expected = finish(engine, session)
    with closing(engine.session(PROMPT, SAMPLING, GENERATION, limit=60)) as session:
        found, memories = engine.step([session])[0], engine.memories
        with pytest.raises(error, match=message):
            engine.add(culprit(family, tmp_path))
        assert (engine.registry.version, engine.memories, engine.registry.open_memories) == (1, memories, memories)
        found += finish(engine, session)
    with closing(Plain(family.base, [(family.memory, 0.5)])) as truth:
        assert same(truth, PROMPT, found, expected, SAMPLING)


def test_a_seventeenth_memory_is_refused(family: Family) -> None:
    with closing(Engine(family.base, [MemoryOptions(family.memory, 0.05)] * 16, OPTIONS)) as engine:
        with pytest.raises(OptionError, match="at most 16 can be mixed"):
            engine.add(MemoryOptions(family.memory, 0.05))
        assert (len(engine.registry.open_memories), engine.registry.version) == (16, 16)
        with closing(engine.session(PROMPT, SAMPLING, GENERATION, limit=30)) as session:
            assert len(finish(engine, session)) == 30 - len(PROMPT)
        engine.remove(engine.memories[3])
        engine.add(MemoryOptions(family.padded, 0.05))


def test_weights_that_cannot_be_change_nothing(engine: Engine, family: Family) -> None:
    [memory] = engine.memories
    engine.add(MemoryOptions(family.padded, 0.4))
    with pytest.raises(OptionError, match=r"0\.7 \+ 0\.4 = 1\.1"):
        engine.reweight(memory, 0.7)
    assert (engine.mixture().weights, engine.registry.version) == ((0.5, 0.4), 2)
    with closing(engine.session(PROMPT, SAMPLING, GENERATION)) as session:
        for shares in ([(memory, 1.5)], [(memory, -0.5)], [(memory, 0.6), (engine.memories[1], 0.5)]):
            with pytest.raises(OptionError):
                session.mix(MemoryMixture.of(shares))
        with pytest.raises(OptionError, match="given twice; add up its weights"):
            session.mix(MemoryMixture.of([(memory, 0.2), (memory, 0.3)]))
        assert (list(session.memories), session.mixture.weights) == (engine.memories, (0.5, 0.4))
        assert [each.users for each in engine.memories] == [1, 1]
        engine.step([session])[0]
    with pytest.raises(OptionError):
        engine.session(PROMPT, mixture=MemoryMixture.of([(memory, 1.5)]))
    assert [each.users for each in engine.memories] == [0, 0]
    for _ in range(3):
        engine.session([1], limit=3).close()


def test_a_memory_of_a_shorter_context_bounds_only_those_that_mix_it(
    family: Family, engine: Engine, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "short", seed=6, n_ctx=48)
    path = tiny_gguf(tmp_path / "memdec-short.gguf", checkpoint, role="memory", base=family.base)
    with closing(engine.session([5] * 20, SAMPLING, GENERATION, limit=100)) as session:
        added = engine.add(MemoryOptions(path, 0.4))
        assert (engine.longest(), engine.longest(engine.memories[:1])) == (48, 512)
        session.mix(MemoryMixture.of([(added, 0.4)]))
        assert len(finish(engine, session)) == 28
        session.rewind(30)
        session.mix(MemoryMixture.of([]))
        assert len(finish(engine, session)) == 70  # the limit that it was let in with holds again
    half = MemoryMixture.of([(engine.memories[0], 0.5)])
    with closing(engine.session([5] * 49, SAMPLING, mixture=half, limit=100)) as session:
        with pytest.raises(ContextError, match="a prompt of 49 tokens do not fit the context of 48"):
            session.mix(MemoryMixture.of([(added, 0.4)]))
        assert (list(session.memories), session.limit) == (engine.memories[:1], 100)
        session.rewind(48)
        session.mix(MemoryMixture.of([(added, 0.4)]))
        assert (session.finished, engine.step([session])[0]) == ("length", [])
    with pytest.raises(ContextError, match="do not fit the context of 48"):
        engine.session([5], limit=49)


def test_a_memory_that_lacks_a_token_of_the_text_is_not_taken(family: Family) -> None:
    with closing(Engine(family.padded, (), replace(OPTIONS, force=True))) as engine:
        added = engine.add(MemoryOptions(family.memory, 0.5))
        with closing(engine.session([1, 399 + PADDING, 2], mixture=MemoryMixture.of([]))) as session:
            with pytest.raises(DecodeError, match="outside the vocabulary of 400 tokens"):
                session.mix(MemoryMixture.of([(added, 0.5)]))
            engine.step([session])[0]
