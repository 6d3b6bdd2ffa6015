"""Models whose contexts cannot roll back, as base and as memory: mixed plainly, with the same text."""

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memdec_edge.engine import Engine, MemoryMixture, Sampled
from memdec_edge.errors import BusyError, Cancelled
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, SamplingOptions
from tests.conftest import Family
from tests.support.plain import (
    GREEDY,
    ONE_THREAD,
    PENALISED,
    WARM,
    Plain,
    finish,
    prompts,
    same,
)
from tests.support.tiny_recurrent import tiny_hybrid_gguf, tiny_recurrent_gguf, tiny_sliding_gguf

BUILDERS = {"recurrent": tiny_recurrent_gguf, "hybrid": tiny_hybrid_gguf, "sliding": tiny_sliding_gguf}


@pytest.fixture(scope="module", params=BUILDERS)
def odd(request: pytest.FixtureRequest, family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    return BUILDERS[request.param](folder / f"{request.param}.gguf", family.base)


@pytest.mark.parametrize("n_seq", [1, 3])
@pytest.mark.parametrize("sampling", [GREEDY, WARM, PENALISED], ids=["greedy", "warm", "penalised"])
def test_a_base_that_cannot_roll_back_is_mixed_plainly_and_gives_the_same_text(
    family: Family, odd: Path, sampling: SamplingOptions, n_seq: int
) -> None:
    options: LoadOptions = replace(ONE_THREAD, n_seq=n_seq, n_ctx=512)
    sampling = replace(sampling, seed=3)
    with closing(Plain(odd, [(family.memory, 0.6)])) as truth:
        with closing(Engine(odd, [MemoryOptions(family.memory, 0.6)], options)) as engine:
            can = engine.context.can_roll_back
            assert can == ("sliding" in odd.name and n_seq == 1)
            for prompt in prompts(2, 40):  # longer than a sliding window
                texts = []
                for draft in (0, 4, None):
                    generation = GenerationOptions(draft=draft, ignore_eos=True)
                    with closing(engine.session(prompt, sampling, generation, limit=80)) as session:
                        texts.append(finish(engine, session))
                        assert len(texts[-1]) == 40
                        assert (session.n_drafted > 0) == (can and draft != 0)
                        session.rewind(60)
                        assert same(truth, prompt, texts[-1][:20] + finish(engine, session), texts[0], sampling)
                assert all(same(truth, prompt, text, texts[0], sampling) for text in texts[1:])
            row = truth.logits(prompt, [], sampling)
            row[0] = -np.inf  # --ignore-eos
            assert int(row.argmax()) == texts[0][0].token or sampling.temperature


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_a_memory_that_cannot_roll_back_is_mixed_plainly_and_gives_the_same_text(
    family: Family, odd: Path, sampling: SamplingOptions
) -> None:
    options, sampling = replace(ONE_THREAD, n_seq=2, n_ctx=512, force=True), replace(sampling, seed=3)
    memories = [MemoryOptions(odd, 0.3), MemoryOptions(family.memory, 0.3)]
    shares = [(odd, 0.3), (family.memory, 0.3)]
    with closing(Plain(family.base, shares)) as truth, closing(Engine(family.base, memories, options)) as engine:
        prompt = prompts(3, 40)[2]
        texts = []
        for draft in (0, 4):
            generation = GenerationOptions(draft=draft, ignore_eos=True)
            with closing(engine.session(prompt, sampling, generation, limit=70)) as session:
                texts.append(finish(engine, session))
                assert session.n_drafted == 0
        assert same(truth, prompt, texts[1], texts[0], sampling)
        generation = GenerationOptions(draft=4, ignore_eos=True)  # and without it, drafting goes on beside it
        with ExitStack() as stack:
            second = MemoryMixture.of([(engine.memories[1], 0.6)])
            plainly = stack.enter_context(closing(engine.session(prompt, sampling, generation, limit=70)))
            drafting = stack.enter_context(
                closing(engine.session(prompt, sampling, generation, mixture=second, limit=70))
            )
            found: list[Sampled] = []
            while not plainly.finished:
                found += engine.step([plainly, drafting])[0]
            assert drafting.n_accepted > 0
            assert same(truth, prompt, found, texts[0], sampling)


def test_a_fork_or_a_stop_on_a_base_that_cannot_roll_back_changes_nothing(family: Family, odd: Path) -> None:
    options, sampling = replace(ONE_THREAD, n_seq=2, n_ctx=512), replace(WARM, seed=3)
    generation, prompt = GenerationOptions(ignore_eos=True), prompts(4, 40)[3]
    with closing(Plain(odd, [(family.memory, 0.6)])) as truth:
        with closing(Engine(odd, [MemoryOptions(family.memory, 0.6)], options)) as engine:
            with closing(engine.session(prompt, sampling, generation, limit=70)) as session:
                expected = finish(engine, session)
            with closing(engine.session(prompt, sampling, generation, limit=70)) as session:
                found = engine.step([session])[0] + engine.step([session])[0]
                engine.cancel()
                with pytest.raises(Cancelled):
                    engine.step([session])[0]
                with closing(engine.fork(session)) as twin:
                    twins = list(found)
                    while not session.finished:
                        for kept, samples in zip((found, twins), engine.step([session, twin]), strict=True):
                            kept += samples
            assert same(truth, prompt, found, expected, sampling)
            assert same(truth, prompt, twins, expected, sampling)


def test_forks_that_cannot_keep_sharing_cells_reserve_their_own(family: Family, odd: Path) -> None:
    with closing(Engine(odd, (), replace(ONE_THREAD, n_seq=3, n_ctx=512))) as engine:
        with closing(engine.session([5] * 250, GREEDY, GenerationOptions(ignore_eos=True), limit=256)) as session:
            session.prefill()
            with closing(engine.fork(session)) as twin:
                for each in (session, twin):
                    each.rewind(249)
                    each.extend([7])
                engine.step([session, twin])
                assert session.tokens == twin.tokens
                with pytest.raises(BusyError, match="1 cells wanted and 0 of 512 are free"):
                    engine.session([1], limit=1)
        with closing(engine.session([5] * 250, GREEDY, limit=257)) as session:
            with pytest.raises(BusyError, match="257 cells wanted and 255 of 512 are free"):
                engine.fork(session)
