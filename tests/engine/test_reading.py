"""Prompts of several sessions read together: in common batches, and with the same numbers as each by itself."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memdec_edge.engine import Engine, MemoryMixture, Session, reading
from memdec_edge.errors import Cancelled, DecodeError, NumericsError
from memdec_edge.options import MemoryOptions, MixtureOptions
from tests.conftest import Family
from tests.support.plain import FOUR, GREEDY, WARM, cells, prompts, watched
from tests.support.tiny import edit_tensors, tiny_checkpoint, tiny_gguf
from tests.support.tiny_recurrent import tiny_hybrid_gguf, tiny_recurrent_gguf, tiny_sliding_gguf

LENGTHS = (40, 7, 90, 23)
SHARES = ((0.4, 0.3), (0.0, 0.5), (0.0, 0.0), (0.6, 0.0))  # of the memories of `engine`
LEARNING = MixtureOptions(evidence=30, eta=0.3)


def begin(engine: Engine, number: int, learning: MixtureOptions | None = LEARNING) -> Session:
    """The session of LENGTHS[number], with its own memories."""
    weights = zip(engine.memories, SHARES[number], strict=False)
    mixture = MemoryMixture.of([(memory, weight) for memory, weight in weights if weight], learning)
    prompt = prompts(4, 90)[number][: LENGTHS[number]]
    return engine.session(prompt, replace(WARM, seed=number), mixture=mixture, limit=len(prompt) + 20)


def clear(engine: Engine) -> None:
    for context in (engine.context, *(memory.context for memory in engine.memories)):
        context.clear()


def found_in(session: Session) -> tuple[tuple[float, ...], np.ndarray]:
    """The weights after the prompt, and the mixed row after it."""
    return session.mixture.shares, session.logits().copy()


@pytest.fixture
def alone(engine: Engine) -> Iterator[list[tuple[tuple[float, ...], np.ndarray]]]:
    """What each session finds in its prompt by itself; afterwards nothing is cached."""
    found = []
    for number in range(4):
        clear(engine)
        with closing(begin(engine, number)) as session:
            session.prefill()
            found.append(found_in(session))
    clear(engine)
    yield found
    cells(engine)


def agree(sessions: list[Session], alone: list[tuple[tuple[float, ...], np.ndarray]]) -> None:
    for session, (shares, row) in zip(sessions, alone, strict=True):
        np.testing.assert_allclose(session.mixture.shares, shares, atol=1e-5)
        np.testing.assert_allclose(session.logits(), row, atol=1e-3)


def test_prompts_read_together_share_one_batch_of_each_model_and_give_what_each_gives_alone(
    engine: Engine, alone: list[tuple[tuple[float, ...], np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(begin(engine, number))) for number in range(4)]
        contexts = (engine.context, *(memory.context for memory in engine.memories))
        watches = [stack.enter_context(watched(monkeypatch, context)) for context in contexts]
        assert [session.n_unread for session in sessions] == [length - 1 for length in LENGTHS]
        assert engine.read(dict.fromkeys(sessions)) == dict.fromkeys(sessions, 0)
        assert [[len(batch) for batch in decodes] for decodes in watches] == [[39 + 6 + 89 + 22], [39 + 22], [39 + 6]]
        assert [session.n_unread for session in sessions] == [0] * 4
        agree(sessions, alone)


def test_a_step_reads_the_prompts_of_its_sessions_together(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    clear(engine)
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(begin(engine, number))) for number in range(4)]
        decodes = stack.enter_context(watched(monkeypatch, engine.context))
        assert all(engine.step(sessions))
        assert len(decodes[0]) == 39 + 6 + 89 + 22


@pytest.mark.parametrize("n_batch", [8, 64])
def test_pieces_of_any_size_and_small_batches_give_the_same(
    family: Family, engine: Engine, alone: list[tuple[tuple[float, ...], np.ndarray]], n_batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(reading, "LOGITS", 5 * 400)  # rows with logits in one batch
    memories = [MemoryOptions(family.memory, 0.4), MemoryOptions(family.padded, 0.3)]
    with closing(Engine(family.base, memories, replace(FOUR, n_batch=n_batch))) as small, ExitStack() as stack:
        sessions = [stack.enter_context(closing(begin(small, number))) for number in range(4)]
        decodes = stack.enter_context(watched(monkeypatch, small.context))
        left = small.read({sessions[0]: 17, sessions[1]: 3, sessions[2]: 0, sessions[3]: None})
        assert [left[session] for session in sessions] == [22, 3, 89, 0]
        assert [len(small.context.tokens[session.slot]) for session in sessions] == [17, 3, 0, 22]
        left = small.read({sessions[2]: 50, sessions[0]: 100})
        assert left == {sessions[2]: 39, sessions[0]: 0}
        assert small.read(dict.fromkeys(sessions)) == dict.fromkeys(sessions, 0)
        assert max(map(len, decodes)) <= n_batch
        assert sum(map(len, decodes)) == sum(LENGTHS) - 4
        agree(sessions, alone)


def test_what_was_read_of_one_prompt_is_not_read_again_for_another(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear(engine)
    with ExitStack() as stack:
        first = stack.enter_context(closing(begin(engine, 0)))
        first.prefill()
        second = stack.enter_context(closing(begin(engine, 1)))
        decodes = stack.enter_context(watched(monkeypatch, engine.context))
        assert engine.read({first: None, second: None}) == {first: 0, second: 0}
        assert [len(batch) for batch in decodes] == [6]
        assert engine.read({}) == {}


def test_a_stop_at_any_batch_harms_no_prompt(
    engine: Engine, alone: list[tuple[tuple[float, ...], np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LOGITS", 20 * 400)
    for k in range(6):
        left = iter(range(k, -1, -1))

        def stop(left: Iterator[int] = left) -> None:
            if next(left, 1) == 0:
                engine.cancel()

        clear(engine)
        with ExitStack() as stack:
            sessions = [stack.enter_context(closing(begin(engine, number))) for number in range(4)]
            with ExitStack() as watches:
                for context in sessions[0].contexts:
                    watches.enter_context(watched(monkeypatch, context, stop))
                with pytest.raises(Cancelled):
                    engine.read(dict.fromkeys(sessions))
            sessions[1].close()  # its client left
            rest = [sessions[0], *sessions[2:]]
            assert engine.read(dict.fromkeys(rest)) == dict.fromkeys(rest, 0)
            agree(rest, [alone[0], *alone[2:]])


def test_a_memory_whose_numbers_overflow_fails_its_own_session_and_the_others_go_on(
    family: Family, engine: Engine, alone: list[tuple[tuple[float, ...], np.ndarray]], tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "nan", seed=6)
    edit_tensors(checkpoint, {"model.norm.weight": np.full(64, 3e38, np.float32)})
    broken = tiny_gguf(tmp_path / "memdec-nan.gguf", checkpoint, role="memory")
    memory = engine.add(MemoryOptions(broken, 0.1))
    with ExitStack() as stack:
        bad = stack.enter_context(closing(engine.session(
            prompts(5, 30)[4], GREEDY, mixture=MemoryMixture.of([(memory, 0.1)], LEARNING), limit=40
        )))  # fmt: skip
        engine.remove(memory)
        sessions = [stack.enter_context(closing(begin(engine, number))) for number in (0, 3)]
        with pytest.raises(NumericsError, match=r"memdec-nan\.gguf"):
            engine.read(dict.fromkeys([bad, *sessions]))
        with pytest.raises(NumericsError):
            engine.read({bad: None})
        assert engine.read(dict.fromkeys(sessions)) == dict.fromkeys(sessions, 0)
        agree(sessions, [alone[0], alone[3]])


@pytest.mark.parametrize("builder", [tiny_recurrent_gguf, tiny_hybrid_gguf, tiny_sliding_gguf])
def test_models_that_cannot_roll_back_read_prompts_together_too(family: Family, tmp_path: Path, builder) -> None:  # type: ignore[no-untyped-def]
    odd = builder(tmp_path / "odd.gguf", family.base)
    memories = [MemoryOptions(family.memory)]
    found = []
    for together in (False, True):
        with closing(Engine(odd, memories, replace(FOUR, n_ctx=512))) as engine, ExitStack() as stack:
            mixture = engine.mixture(LEARNING)
            sessions = [
                stack.enter_context(closing(engine.session(prompt[:length], WARM, mixture=mixture, limit=length + 9)))
                for prompt, length in zip(prompts(3, 60), (33, 60, 4), strict=True)
            ]
            if together:
                engine.read({sessions[0]: 20, sessions[1]: 5})
                engine.read(dict.fromkeys(sessions))
            else:
                for session in sessions:
                    session.prefill()
            found.append([found_in(session) for session in sessions])
    for (shares, row), (others, other) in zip(*found, strict=True):
        np.testing.assert_allclose(shares, others, atol=1e-4)
        np.testing.assert_allclose(row, other, atol=1e-3)


def test_a_session_of_another_engine_and_one_without_tokens_are_refused(engine: Engine, fresh: Engine) -> None:
    with closing(fresh.session([1, 2, 3], limit=10)) as stranger, closing(engine.session((), limit=10)) as empty:
        with pytest.raises(DecodeError, match="another engine"):
            engine.read({stranger: None})
        with pytest.raises(DecodeError, match="nothing to decode"):
            engine.read({empty: None})
