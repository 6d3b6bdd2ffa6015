"""Rounds of drafting and verifying: the text of plain mixing, whatever is drafted, and no work done twice."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memdec_edge.engine import Engine, Sampled
from memdec_edge.options import GenerationOptions, MemoryOptions, SamplingOptions
from tests.conftest import Family
from tests.support import plain
from tests.support.plain import (
    GREEDY,
    ONE_THREAD,
    PENALISED,
    USUAL,
    WARM,
    WORDS,
    Plain,
    finish,
    mixed,
    prompts,
    same,
    until_stopped,
    watched,
)
from tests.support.tiny import tiny_gguf

LENGTHS = [0, 1, 3, 8, 16, None]
SETTINGS = {"greedy": GREEDY, "warm": WARM, "usual": USUAL, "penalised": PENALISED, "grammar": WORDS}
COUNT = 64  # tokens of a continuation
setting = pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS.keys())


@pytest.fixture(scope="module")
def engine(family: Family) -> Iterator[Engine]:
    with closing(Engine(family.base, [MemoryOptions(family.memory, 0.6)], ONE_THREAD)) as opened:
        yield opened


@pytest.fixture(scope="module")
def truth(family: Family) -> Iterator[Plain]:
    with closing(Plain(family.base, [(family.memory, 0.6)])) as opened:
        yield opened


def run(
    engine: Engine,
    prompt: list[int],
    sampling: SamplingOptions,
    draft: int | None,
    count: int = COUNT,
    eos: bool = False,
) -> list[Sampled]:
    generation = GenerationOptions(draft=draft, ignore_eos=not eos)
    with closing(engine.session(prompt, sampling, generation, limit=len(prompt) + count)) as session:
        return finish(engine, session)


def one_text_at_every_length(engine: Engine, truth: Plain, sampling: SamplingOptions, number: int, eos: bool) -> None:
    """The heart of this file; also that drafts were made, and some of each length right and some wrong."""
    agreed = [0, 0]
    for seed, prompt in enumerate(prompts(number)):
        sampling = replace(sampling, seed=seed)
        expected = run(engine, prompt, sampling, 0, eos=eos)
        for draft in LENGTHS[1:]:
            drafted, accepted = engine.counters.drafted, engine.counters.accepted
            found = run(engine, prompt, sampling, draft, eos=eos)
            agreed[same(truth, prompt, found, expected, sampling)] += 1
            if len(found) > 30 and draft:
                assert 0 < engine.counters.accepted - accepted < engine.counters.drafted - drafted
    assert agreed[False] <= 1 + sum(agreed) // 50, agreed  # near-ties are rare, or they hide something


@setting
def test_the_text_of_a_seed_is_the_same_at_every_draft_length(
    engine: Engine, truth: Plain, sampling: SamplingOptions
) -> None:
    one_text_at_every_length(engine, truth, sampling, 12, eos=False)


@setting
def test_the_text_of_a_seed_is_the_same_with_two_memories(family: Family, sampling: SamplingOptions) -> None:
    memories = [MemoryOptions(family.memory, 0.4), MemoryOptions(family.padded, 0.3)]
    with closing(Engine(family.base, memories, ONE_THREAD)) as engine:
        with closing(Plain(family.base, [(family.memory, 0.4), (family.padded, 0.3)])) as truth:
            one_text_at_every_length(engine, truth, sampling, 4, eos=False)


def test_end_of_generation_tokens_end_the_text_at_every_draft_length(family: Family, truth: Plain) -> None:
    ended, right = 0, 0
    with closing(Engine(family.base, [MemoryOptions(family.memory, 0.6)], ONE_THREAD)) as engine:
        [eog] = engine.base.eog_tokens
        for seed, prompt in enumerate(prompts(25)):
            sampling = replace(WARM, seed=seed, temperature=2.0)  # hot, so that 0 comes up among 400 tokens
            with closing(engine.session(prompt, sampling, GenerationOptions(draft=0), limit=250)) as session:
                expected = finish(engine, session)
                assert session.tokens == [*prompt, *(sample.token for sample in expected if sample.token != eog)]
                assert (session.finished == "stop") == (expected[-1].token == eog)
                ended += session.finished == "stop"
                assert engine.step([session])[0] == []
            for draft in (3, 16):
                with closing(engine.session(prompt, sampling, GenerationOptions(draft=draft), limit=250)) as session:
                    before = engine.counters.accepted
                    assert same(truth, prompt, finish(engine, session), expected, sampling)
                    right += engine.counters.accepted - before
                    for context in session.contexts:
                        assert context.tokens[session.slot] == session.tokens[: len(context.tokens[session.slot])]
    assert ended > 5
    assert right > 100


@pytest.mark.parametrize("sampling", [GREEDY, WARM, USUAL, PENALISED], ids=["greedy", "warm", "usual", "penalised"])
@pytest.mark.parametrize("draft", [0, 5])
def test_every_sample_is_that_of_the_mixture_that_numpy_computes(
    engine: Engine, truth: Plain, sampling: SamplingOptions, draft: int
) -> None:
    sampling = replace(sampling, seed=77)
    for prompt in prompts(2):
        emitted: list[int] = []
        for token, log_prob, *_ in run(engine, prompt, sampling, draft, 40):
            text = [*prompt, *emitted]
            row = truth.logits(text, emitted, sampling)
            row[list(engine.base.eog_tokens)] = -np.inf
            assert plain.possible(row, token, sampling, len(text))
            assert log_prob == pytest.approx(truth.log_probs(text)[token], abs=1e-3)
            emitted.append(token)


def test_on_quantised_models_every_token_is_the_sample_of_the_row_computed_for_it(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_gguf(tmp_path / "base.gguf", family.base_checkpoint, "q8_0")
    memory = tiny_gguf(tmp_path / "memdec.gguf", family.memory_checkpoint, "q8_0", role="memory", base=base)
    options = replace(ONE_THREAD, flash_attn="auto", cache_type_k="f16", cache_type_v="f16")
    sampling, rows_of_base = replace(WARM, seed=3), []
    with closing(Engine(base, [MemoryOptions(memory, 0.6)], options)) as engine:
        rows = engine.context.rows

        def keep(first: int, count: int = 1) -> object:
            rows_of_base.append(rows(first, count).copy())
            return rows(first, count)

        monkeypatch.setattr(engine.context, "rows", keep)
        generation = GenerationOptions(draft=4, ignore_eos=True)
        with closing(engine.session(prompts(1)[0], sampling, generation, limit=100)) as session:
            while not session.finished:
                start = len(session.tokens)
                samples = engine.step([session])[0]
                memory_rows = session.drafted[session.memories[0]]
                for index, sample in enumerate(samples):
                    row = mixed([rows_of_base[-1][index], memory_rows[index]], [0.4, 0.6])[1].astype(np.float32)
                    row[0] = -np.inf  # --ignore-eos
                    assert plain.possible(row, sample.token, sampling, start + index)
            assert session.n_accepted > 20


# --- no work done twice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft", LENGTHS)
def test_no_token_is_evaluated_twice_and_a_round_is_one_pass_of_the_base(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, draft: int | None
) -> None:
    prompt, rounds = prompts(20)[10 + LENGTHS.index(draft)], engine.counters.rounds
    monkeypatch.setattr(engine.policy, "overlaps", (False,))  # else a last draft is read before it is judged
    generation = GenerationOptions(draft=draft, ignore_eos=True)
    with ExitStack() as stack:
        session = stack.enter_context(
            closing(engine.session(prompt, replace(WARM, seed=9), generation, limit=len(prompt) + COUNT))
        )
        of_base, of_memory = (stack.enter_context(watched(monkeypatch, context)) for context in session.contexts)
        session.prefill()
        start = len(of_base), len(of_memory)
        finish(engine, session)
        rounds = engine.counters.rounds - rounds
        assert len(of_base) - start[0] == rounds
        assert all(len(prefixes) == 1 for prefixes in of_memory[start[1] :])
        for decodes, least in ((of_base, 1), (of_memory, 2)):  # a memory never reads its last draft if that is wrong
            prefixes = [prefix for decode in decodes for prefix in decode]
            assert len(prefixes) == len(set(prefixes))
            whole = tuple(session.tokens)
            assert {whole[:length] for length in range(1, len(whole))} <= set(prefixes)
            if draft is not None:
                refused = [prefix for prefix in prefixes if prefix != whole[: len(prefix)]]
                assert bool(refused) == (draft >= least)
        if draft is not None:
            assert sum(map(len, of_base[start[0] :])) <= rounds * (draft + 1)


def test_at_the_context_s_end_nothing_is_drafted_beyond_it(
    engine: Engine, truth: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = (prompts(40)[0] * 50)[:500]
    expected = run(engine, prompt, GREEDY, 0, 12)
    assert len(expected) == 12
    for draft in (1, 3, 8, 11, 16):
        with closing(engine.session(prompt, GREEDY, GenerationOptions(draft=draft, ignore_eos=True))) as session:
            with ExitStack() as stack:
                watches = [stack.enter_context(watched(monkeypatch, context)) for context in session.contexts]
                assert same(truth, prompt, finish(engine, session), expected, GREEDY)
            assert max(len(prefix) for decodes in watches for decode in decodes for prefix in decode) == 511
            assert (len(session.tokens), session.finished) == (512, "length")
            assert engine.step([session])[0] == []


@pytest.mark.parametrize("length", [511, 512])
def test_a_prompt_that_fills_the_context_leaves_room_for_what_is_left(engine: Engine, length: int) -> None:
    generation = GenerationOptions(draft=8, ignore_eos=True)
    with closing(engine.session((prompts(50)[1] * 50)[:length], GREEDY, generation)) as session:
        assert len(finish(engine, session)) == 512 - length
        assert session.finished == "length"


# --- stopped in the middle of a draft -------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, WARM, PENALISED, WORDS], ids=["greedy", "warm", "penalised", "grammar"])
@pytest.mark.parametrize("how", ["cancelled before", "interrupted before", "interrupted after"])
def test_a_round_that_was_stopped_anywhere_leaves_no_trace(
    engine: Engine, truth: Plain, monkeypatch: pytest.MonkeyPatch, sampling: SamplingOptions, how: str
) -> None:
    """Stopped at the k-th decode of base or memory, for every k of the first rounds."""
    prompt, sampling = prompts(6)[5], replace(sampling, seed=4)
    expected = run(engine, prompt, sampling, 4, 40)
    for k in range(14):
        generation = GenerationOptions(draft=4, ignore_eos=True)
        with closing(engine.session(prompt, sampling, generation, limit=len(prompt) + 40)) as session:
            session.prefill()
            left = iter(range(k, -1, -1))

            def stop(left: Iterator[int] = left) -> None:
                if next(left, 1) == 0:
                    if how.startswith("cancelled"):
                        engine.cancel()
                    else:
                        raise KeyboardInterrupt

            with ExitStack() as stack:
                for context in session.contexts:
                    stack.enter_context(watched(monkeypatch, context, **{how.split()[1]: stop}))
                [samples] = until_stopped(engine, [session])
            assert same(truth, prompt, samples + finish(engine, session), expected, sampling)
