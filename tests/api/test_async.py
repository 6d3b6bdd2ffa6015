"""asyncio: the same text, a loop that stays free, and cancelled tasks that stop within a step and give slots back."""

import asyncio
import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from memdec_edge.api import LanguageModel, open_model
from memdec_edge.errors import BusyError, OptionError
from memdec_edge.options import GenerationOptions, SamplingOptions
from tests.conftest import Family
from tests.support.chatty import QUESTION, chatty
from tests.support.plain import ONE_THREAD

GREEDY = SamplingOptions(temperature=0.0)
LIMIT = GenerationOptions(n_predict=24, ignore_eos=True, draft=0)
ENDLESS = GenerationOptions(n_predict=400, ignore_eos=True, draft=0)


@pytest.fixture(scope="module")
def model(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    base = chatty(family.base, tmp_path_factory.mktemp("async") / "chat.gguf")
    with open_model(base, [family.memory], replace(ONE_THREAD, n_ctx=2048, n_seq=4)) as opened:
        yield opened


def test_async_calls_give_the_same_texts_side_by_side(model: LanguageModel) -> None:
    async def work() -> tuple[list[int], list[int]]:
        chat = model.achat(QUESTION, sampling=GREEDY, generation=LIMIT)
        text = model.agenerate("river", GREEDY, LIMIT)
        answers = await asyncio.gather(chat, text)
        return answers[0].tokens, answers[1].tokens

    chat = model.chat(QUESTION, sampling=GREEDY, generation=LIMIT).tokens
    assert asyncio.run(work()) == (chat, model.generate("river", GREEDY, LIMIT).tokens)


def test_async_both_answers_of_side_by_side_are_those_without_asyncio(model: LanguageModel) -> None:
    async def work() -> list[tuple[int, int | None]]:
        answers = model.aside_by_side(QUESTION, sampling=GREEDY, generation=LIMIT)
        return [(number, chunk.token) async for number, chunk in answers]

    plain = [(n, chunk.token) for n, chunk in model.side_by_side(QUESTION, sampling=GREEDY, generation=LIMIT)]
    assert asyncio.run(work()) == plain
    assert len(plain) == 2 * (LIMIT.n_predict + 1)


def test_errors_come_through(model: LanguageModel) -> None:
    with pytest.raises(OptionError, match="messages is empty"):
        asyncio.run(model.achat([]))


@pytest.mark.parametrize("after", [0.0, 0.05])
def test_a_cancelled_task_stops_within_a_step_and_frees_its_slot(model: LanguageModel, after: float) -> None:
    seen: list[int] = []

    async def consume() -> None:
        async for chunk in model.astream_chat(QUESTION, sampling=GREEDY, generation=ENDLESS):
            seen.append(chunk.timings.predicted_n)

    async def work() -> int:
        task = asyncio.create_task(consume())
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        model.engine.cells.require_idle()  # at once
        return model.engine.counters.emitted

    emitted = asyncio.run(work())
    time.sleep(0.05)
    assert model.engine.counters.emitted == emitted
    assert len(seen) < 400


def test_a_loop_that_is_left_early_frees_its_slot(model: LanguageModel) -> None:
    async def work() -> None:
        stream = model.astream("river", GREEDY, ENDLESS)
        async for _ in stream:
            break
        await stream.aclose()
        model.engine.cells.require_idle()

    asyncio.run(work())


def test_cancelling_a_long_prompt_stops_it_between_batches(family: Family, tmp_path: Path) -> None:
    options = replace(ONE_THREAD, n_batch=4)
    with open_model(chatty(family.base, tmp_path / "c.gguf"), [family.memory], options) as small:
        tokens = [5] * 400

        async def work() -> None:
            task = asyncio.create_task(small.agenerate(tokens, GREEDY, LIMIT))
            while not small.engine.context.n_decoded:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(work())
        gc.collect()
        assert small.engine.context.n_decoded < 400
        small.engine.cells.require_idle()


def test_eight_threads_of_fifty_requests_with_cancellations_lose_no_slot_and_no_memory(model: LanguageModel) -> None:
    limits = replace(LIMIT, n_predict=8)
    expected = [model.generate([7 + n, 9, 11], SamplingOptions(seed=n), limits).tokens for n in range(8)]
    process = psutil.Process()

    async def cancelled(number: int) -> None:
        task = asyncio.ensure_future(model.achat(QUESTION, sampling=SamplingOptions(seed=number), generation=ENDLESS))
        await asyncio.sleep(0.002 * (number % 5))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def work(number: int, pairs: int) -> None:
        done = 0
        while done < pairs:
            try:
                assert (
                    model.generate([7 + number, 9, 11], SamplingOptions(seed=number), limits).tokens == expected[number]
                )
                if done % 2:
                    asyncio.run(cancelled(number + done))
                else:
                    stream = model.stream([5, number + 1], generation=ENDLESS)
                    next(stream)
                    stream.close()
                done += 1
            except BusyError:  # more threads than slots
                time.sleep(0.001)

    def all_of_them(pairs: int) -> int:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8), [pairs] * 8))
        model.engine.cells.require_idle()
        gc.collect()
        return int(process.memory_info().rss)

    before = all_of_them(5)
    assert all_of_them(25) < 1.02 * before  # two requests each
