"""Several threads over one engine: they take turns, none disturbs another, and each text is the one it is alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from time import sleep

import pytest

from memdec_edge.api import LanguageModel
from memdec_edge.engine import Engine
from memdec_edge.errors import BusyError
from memdec_edge.options import GenerationOptions, MemoryOptions, SamplingOptions
from tests.conftest import Family
from tests.support.plain import ONE_THREAD, prompts

N_THREADS, N_REQUESTS, N_SLOTS = 8, 4, 5
LIMITS = GenerationOptions(n_predict=24, ignore_eos=True, draft=0)


@pytest.fixture(scope="module")
def model(family: Family) -> Iterator[LanguageModel]:
    options = replace(ONE_THREAD, n_seq=N_SLOTS, n_ctx=512)
    with closing(LanguageModel(Engine(family.base, [MemoryOptions(family.memory, 0.5)], options))) as opened:
        yield opened


def test_eight_threads_over_one_model_get_the_texts_that_they_get_alone(model: LanguageModel) -> None:
    texts = prompts(N_THREADS)
    alone = [model.generate(text, SamplingOptions(seed=seed), LIMITS).tokens for seed, text in enumerate(texts)]

    def work(seed: int) -> list[list[int]]:
        found: list[list[int]] = []
        while len(found) < N_REQUESTS:
            try:
                found.append(model.generate(texts[seed], SamplingOptions(seed=seed), LIMITS).tokens)
            except BusyError:  # more threads than slots
                sleep(0.001)
        return found

    with ThreadPoolExecutor(N_THREADS) as pool:
        assert list(pool.map(work, range(N_THREADS))) == [[text] * N_REQUESTS for text in alone]
    model.engine.cells.require_idle()


def test_closing_a_model_waits_for_the_step_of_another_thread(family: Family) -> None:
    engine = Engine(family.base, [MemoryOptions(family.memory, 0.5)], ONE_THREAD)
    session = engine.session(prompts(1)[0], SamplingOptions(seed=1), GenerationOptions(ignore_eos=True))
    with ThreadPoolExecutor(1) as pool:
        with engine.lock:  # as a step in this thread would hold it
            closing_ = pool.submit(engine.close)
            sleep(0.05)
            assert not closing_.done()
            assert engine.step([session])[0]
        closing_.result()
    assert session.closed
