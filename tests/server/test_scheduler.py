"""The scheduler by itself: slices of cells, who gives way, pieces of prompts, shared beginnings, ends."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.api.results import Chunk
from memdec_edge.api.streams import Request, generate
from memdec_edge.engine import Engine, MemoryMixture
from memdec_edge.errors import (
    ContextError,
    DecodeError,
    MemdecError,
    NumericsError,
    OptionError,
    OverloadError,
    UnavailableError,
)
from memdec_edge.options import GenerationOptions, MemoryOptions, MixtureOptions, SamplingOptions
from memdec_edge.server.admission import SHARED
from memdec_edge.server.job import End, Event, Job, Progress
from memdec_edge.server.scheduler import Scheduler, divided
from tests.conftest import Family
from tests.support.plain import FOUR, WARM, Plain, prompts, same
from tests.support.tiny import edit_tensors, tiny_checkpoint, tiny_gguf

PATIENCE = 30.0


class Listener:
    """Keeps what a job is told, and when."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Event]] = []
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append((time.monotonic(), event))
        if isinstance(event, End | MemdecError):
            self.over.set()

    @property
    def chunks(self) -> list[Chunk]:
        return [event for _, event in self.events if isinstance(event, Chunk)]

    @property
    def last(self) -> Event:
        assert self.over.wait(PATIENCE), "the job never ended"
        return self.events[-1][1]

    @property
    def end(self) -> End:
        last = self.last
        assert isinstance(last, End), last
        return last


class Desk:
    """A scheduler, and jobs for it."""

    def __init__(self, engine: Engine, queue: int = 64) -> None:
        self.engine, self.scheduler = engine, Scheduler(engine, queue)

    def job(
        self,
        tokens: list[int],
        n_predict: int = -1,
        sampling: SamplingOptions = WARM,
        *,
        seed: int = 1,
        progress: bool = False,
    ) -> tuple[Job, Listener]:
        listener = Listener()
        generation = GenerationOptions(n_predict=n_predict, ignore_eos=True)
        request = Request(tokens, None, replace(sampling, seed=seed), generation, self.engine.mixture())
        job = Job(request, listener, progress=progress)
        self.scheduler.check(job)
        return job, listener

    def submit(self, *jobs: tuple[Job, Listener]) -> list[Listener]:
        self.scheduler.submit([job for job, _ in jobs])
        return [listener for _, listener in jobs]

    def until(self, condition: object) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.001)


@contextmanager
def at_work(family: Family, n_ctx: int, n_seq: int = 4, queue: int = 64) -> Iterator[Desk]:
    load = replace(FOUR, n_ctx=n_ctx, n_seq=n_seq, n_batch=64)
    with closing(Engine(family.base, [MemoryOptions(family.memory, 0.6)], load)) as engine:
        desk = Desk(engine, queue)
        try:
            yield desk
            desk.until(lambda: not desk.scheduler.active and not desk.scheduler.waiting)
            assert (engine.cells.free, sorted(engine.cells._idle)) == (n_ctx, list(range(n_seq)))
        finally:
            desk.scheduler.stop()


def alone(family: Family, tokens: list[int], n_predict: int, seed: int) -> list[Chunk]:
    """What the stream is without others."""
    with closing(Engine(family.base, [MemoryOptions(family.memory, 0.6)], replace(FOUR, n_seq=1))) as engine:
        generation = GenerationOptions(n_predict=n_predict, ignore_eos=True)
        request = Request(tokens, None, replace(WARM, seed=seed), generation, engine.mixture())
        return [chunk for chunk in generate(engine, request) if chunk.token is not None]


def test_streams_without_a_limit_run_side_by_side_and_reserve_what_they_use(family: Family) -> None:
    with at_work(family, 512) as desk:
        listeners = desk.submit(*(desk.job(prompt) for prompt in prompts(4)))
        desk.until(lambda: all(len(listener.chunks) > 5 for listener in listeners))
        assert len(desk.scheduler.active) == 4
        assert desk.engine.cells.free > 0
        for listener in listeners:
            desk.scheduler.cancel(next(job for job in desk.scheduler.active if job.listener is listener))


def test_where_cells_end_the_youngest_wait_and_every_text_stays_what_it_is_alone(family: Family) -> None:
    with at_work(family, 256) as desk:  # four streams of 132 tokens need twice as much
        jobs = [desk.job(prompt, 120, seed=number) for number, prompt in enumerate(prompts(4))]
        listeners = desk.submit(*jobs)
        ends = [listener.end for listener in listeners]
        assert desk.scheduler.totals.suspended > 0
        assert [end.chunk.finish_reason for end in ends] == ["length"] * 4
        assert [end.truncated for end in ends] == [False] * 4
        assert [end.chunk.timings.predicted_n for end in ends] == [120] * 4
        times = [listener.events[-1][0] for listener in listeners]
        assert times[0] == min(times)
    with closing(Plain(family.base, [(family.memory, 0.6)])) as truth:
        for number, (prompt, listener) in enumerate(zip(prompts(4), listeners, strict=True)):
            expected = alone(family, prompt, 120, number)
            assert len(listener.chunks) == 120
            same(truth, prompt, listener.chunks, expected, replace(WARM, seed=number))  # type: ignore[arg-type]


def test_a_stream_that_fills_the_context_alone_ends_by_its_length(family: Family) -> None:
    with at_work(family, 128, n_seq=2) as desk:
        [listener] = desk.submit(desk.job(prompts(1)[0]))
        assert (listener.end.chunk.finish_reason, listener.end.truncated) == ("length", True)
        assert len(listener.chunks) == 128 - 12
        [listener] = desk.submit(desk.job(prompts(1)[0], 500))  # more than fits is no error
        assert (listener.end.truncated, len(listener.chunks)) == (True, 128 - 12)
        [listener] = desk.submit(desk.job(prompts(1)[0], 0))
        assert (listener.end.chunk.finish_reason, listener.chunks) == ("length", [])


def test_what_cannot_be_is_refused_before_it_waits(family: Family) -> None:
    with at_work(family, 128) as desk:
        with pytest.raises(OptionError, match="prompt is empty"):
            desk.job([])
        with pytest.raises(ContextError) as error:
            desk.job([1] * 128)
        assert (error.value.prompt, error.value.n_ctx) == (128, 128)
        desk.job([1] * 128, 0)
        with pytest.raises(OptionError, match="grammar"):
            desk.job([1], sampling=replace(WARM, grammar="root ::= ("))
        with pytest.raises(OptionError, match="logit_bias"):
            desk.job([1], sampling=replace(WARM, logit_bias=((4000, 1.0),)))


def test_a_token_that_a_memory_lacks_is_refused_before_it_is_read(family: Family, tmp_path: Path) -> None:
    wide = tiny_gguf(tmp_path / "wide.gguf", tiny_checkpoint(tmp_path / "wide", seed=8, vocab_extra=16))
    with closing(Engine(wide, [MemoryOptions(family.memory, 0.6)], FOUR)) as engine:
        desk = Desk(engine)
        try:
            n_vocab = engine.memories[0].model.n_vocab
            assert engine.base.n_vocab > n_vocab
            with pytest.raises(OptionError, match=f"ids are from 0 to {n_vocab - 1}"):
                desk.job([1, n_vocab], 3)
            [listener] = desk.submit(desk.job([1, n_vocab - 1], 3))
            assert listener.end.chunk.timings.predicted_n == 3
        finally:
            desk.scheduler.stop()


def test_a_fault_of_ours_ends_the_streams_and_not_the_server(
    family: Family, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with at_work(family, 512) as desk:
        with monkeypatch.context() as patch:
            patch.setattr(desk.engine, "step", lambda sessions: 1 / 0)
            listeners = desk.submit(desk.job([5], 3), desk.job([6], 3))
            assert all(isinstance(listener.last, DecodeError) for listener in listeners)
        [again] = desk.submit(desk.job([5], 3))
        assert again.end.chunk.timings.predicted_n == 3
    assert "ZeroDivisionError" in caplog.text


def test_as_many_wait_as_may_and_the_next_is_told_when_to_come_again(family: Family) -> None:
    with at_work(family, 512, n_seq=1, queue=2) as desk:
        first = desk.job(prompts(1)[0])
        waiting = [desk.job([5], 3), desk.job([6], 3)]
        desk.submit(first, *waiting)
        with pytest.raises(OverloadError, match="requests wait already; try again in") as error:
            desk.submit(desk.job([7], 3))
        assert 1 <= error.value.retry_after <= 60
        desk.scheduler.cancel(first[0])
        assert [listener.end.chunk.finish_reason for _, listener in waiting] == ["length"] * 2


@pytest.mark.parametrize("when", ["waiting", "reading", "running", "suspended"])
def test_a_job_that_is_given_up_frees_its_place_at_once(family: Family, when: str) -> None:
    with at_work(family, 500, n_seq=2) as desk:
        if when == "waiting":
            others = desk.submit(desk.job([5]), desk.job([6]))
            job, listener = desk.job([7])
            desk.submit((job, listener))
            desk.until(lambda: job in desk.scheduler.waiting)
        elif when == "reading":
            others = []
            job, listener = desk.job([*range(1, 390)], progress=True)
            desk.submit((job, listener))
            desk.until(lambda: len(listener.events) > 1)
        elif when == "running":
            others = []
            job, listener = desk.job([7])
            desk.submit((job, listener))
            desk.until(lambda: len(listener.chunks) > 2)
        else:
            others = desk.submit(desk.job([5]))
            job, listener = desk.job([7])
            desk.submit((job, listener))
            desk.until(lambda: desk.scheduler.totals.suspended > 0 or others[0].over.is_set())
        desk.scheduler.cancel(job)
        told = len(listener.events)
        desk.until(lambda: job not in (*desk.scheduler.active, *desk.scheduler.waiting))
        assert desk.scheduler.totals.cancelled == 1
        assert job.stream is None or job.stream.session.closed
        for other in [job for job in (*desk.scheduler.active, *desk.scheduler.waiting) if job.listener in others]:
            desk.scheduler.cancel(other)
        assert len(listener.events) <= told + 2
        assert not listener.over.is_set()


def test_a_long_prompt_is_read_between_the_tokens_of_others(family: Family) -> None:
    with at_work(family, 1024) as desk:
        running = [desk.job(prompt) for prompt in prompts(3)]
        listeners = desk.submit(*running)
        desk.until(lambda: all(len(listener.chunks) > 8 for listener in listeners))
        [long] = desk.submit(desk.job((prompts(9)[8] * 40)[:400], 4, progress=True))
        assert long.end.chunk.finish_reason == "length"
        times = [when for when, event in long.events if isinstance(event, Progress)]
        assert len(times) > 6  # in pieces shorter than a whole batch
        for begin, end in pairwise(times[1:]):  # the first piece follows the job's beginning at once
            assert all(any(begin < when < end for when, _ in one.events) for one in listeners)
        for job, _ in running:
            desk.scheduler.cancel(job)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=20), st.integers(1, 2048))
def test_a_turn_is_divided_among_all_prompts(unread: list[int], most: int) -> None:
    shares, n = divided(unread, most), sum(map(bool, unread))
    assert sum(shares) <= most
    assert all(0 <= share <= left for share, left in zip(shares, unread, strict=True))
    assert shares[0] >= min(unread[0], most / max(n, 1))  # the oldest never starves
    done = [left for share, left in zip(shares, unread, strict=True) if share == left > 0]
    if sum(unread) <= most:
        assert shares == unread
    elif not done:
        assert sum(shares) == most
    waiting = [left for share, left in zip(shares[1:], unread[1:], strict=True) if share < left]
    assert all(
        share == left for share, left in zip(shares[1:], unread[1:], strict=True) if left < min(waiting, default=0)
    )


def test_a_turn_gives_long_prompts_an_even_share_where_short_ones_end_with_it() -> None:
    assert divided([1000, 39, 39, 39], 512) == [128, 39, 39, 39]
    assert divided([39, 39, 1000, 39], 512) == [39, 39, 128, 39]
    assert divided([3000, 3000], 512) == [512, 0]
    assert divided([3000, 2000], 512) == [256, 256]
    assert divided([3000], 512) == [512]
    assert divided([3000, 39, 20], 16) == [6, 0, 10]


def test_short_prompts_do_not_wait_for_a_long_one_that_came_before(family: Family) -> None:
    with at_work(family, 1024) as desk:
        jobs = [desk.job((prompts(9)[8] * 60)[:480], 4), *(desk.job(prompt, 4) for prompt in prompts(3))]
        long, *short = desk.submit(*jobs)
        ends = [listener.events[-1][0] for listener in short if listener.end]
        assert long.end.chunk.finish_reason == "length"
        assert max(ends) < long.events[0][0]
        assert desk.scheduler.totals.reads < 3 + 480 / 16


def test_a_prompt_that_cannot_be_read_ends_its_job_and_the_others_read_with_it_go_on(
    family: Family, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "nan", seed=6)
    edit_tensors(checkpoint, {"model.norm.weight": np.full(64, 3e38, np.float32)})
    broken = tiny_gguf(tmp_path / "memdec-nan.gguf", checkpoint, role="memory")
    with at_work(family, 512) as desk:
        usual = desk.engine.mixture(MixtureOptions())
        memory = desk.engine.add(MemoryOptions(broken, 0.3))
        bad, *good = [desk.job(prompt, 4) for prompt in prompts(4, 40)]
        mixture = MemoryMixture.of([(memory, 0.5)], MixtureOptions())
        for job, chosen in zip((bad, *good), (mixture, usual, usual, usual), strict=True):
            job[0].request = replace(job[0].request, mixture=chosen)
        told = desk.submit(good[0], bad, *good[1:])
        assert isinstance(told[1].last, NumericsError)
        assert [listener.end.chunk.timings.predicted_n for listener in (told[0], *told[2:])] == [4, 4, 4]
        desk.engine.remove(memory)


def test_prompts_with_a_common_beginning_are_read_once_even_when_they_come_together(family: Family) -> None:
    system = (prompts(9)[8] * 20)[:200]
    with at_work(family, 1024) as desk:
        jobs = [desk.job([*system, *prompt], 8, seed=number) for number, prompt in enumerate(prompts(4))]
        listeners = desk.submit(*jobs)
        cached = sorted(listener.end.chunk.timings.cache_n for listener in listeners)
        assert cached[0] == 0
        assert min(cached[1:]) >= 200 - SHARED
        assert desk.scheduler.totals.cached_tokens == sum(cached)
    with closing(Plain(family.base, [(family.memory, 0.6)])) as truth:
        for prompt, listener in zip(prompts(4), listeners, strict=True):
            [first, *_] = listener.chunks
            row = truth.log_probs([*system, *prompt])
            assert first.token is not None
            assert first.log_prob == pytest.approx(row[first.token], abs=1e-3)


def test_an_error_of_one_stream_ends_that_one_alone(family: Family) -> None:
    with at_work(family, 512) as desk:
        narrow = replace(WARM, logit_bias=tuple((token, float("-inf")) for token in range(400)))
        bad, good = desk.job([5], 10, narrow), desk.job([6], 10)
        listeners = desk.submit(bad, good)
        assert isinstance(listeners[0].last, NumericsError)
        assert listeners[1].end.chunk.timings.predicted_n == 10
        [again] = desk.submit(desk.job([5], 10, narrow))  # without another beside it
        assert isinstance(again.last, NumericsError)
        assert desk.scheduler.totals.failed == 2


def test_at_the_end_running_streams_finish_and_the_others_are_told(family: Family) -> None:
    with closing(Engine(family.base, [MemoryOptions(family.memory, 0.6)], replace(FOUR, n_seq=1))) as engine:
        desk = Desk(engine)
        running, waiting = desk.job([5], 60), desk.job([6], 5)
        listeners = desk.submit(running, waiting)
        desk.until(lambda: len(listeners[0].chunks) > 2)
        desk.scheduler.drain(PATIENCE)
        assert isinstance(listeners[1].last, UnavailableError)
        with pytest.raises(UnavailableError):
            desk.submit(desk.job([7], 5))
        assert listeners[0].end.chunk.timings.predicted_n == 60
        desk.scheduler.stop()


def test_streams_that_are_not_done_when_the_time_is_over_are_told(family: Family) -> None:
    with closing(Engine(family.base, [MemoryOptions(family.memory, 0.6)], replace(FOUR, n_ctx=0))) as engine:
        desk = Desk(engine)
        [listener] = desk.submit(desk.job([5]))
        desk.until(lambda: len(listener.chunks) > 2)
        desk.scheduler.drain(0.0)
        assert isinstance(listener.last, UnavailableError | End)
        desk.scheduler.stop()
        assert engine.cells.free == engine.n_ctx


def test_other_work_is_done_between_two_steps_and_its_errors_come_back(family: Family) -> None:
    with at_work(family, 512) as desk:
        job, listener = desk.job([5])
        desk.submit((job, listener))
        names = desk.scheduler.call(lambda: threading.current_thread().name)
        assert names.result(PATIENCE) == "memdec-scheduler"
        broken = desk.scheduler.call(lambda: desk.engine.require_room(1, 10_000))
        with pytest.raises(ContextError):
            broken.result(PATIENCE)
        desk.scheduler.cancel(job)
