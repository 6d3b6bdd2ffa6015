"""The one thread that steps the engine: which request has a slot, how many cells it reserves, what is decoded next.

A turn of the thread admits jobs, reads a piece of one prompt and steps all streams that are read. Jobs are served by
age. A stream reserves cells for its prompt and a slice more, and grows by slices. Where cells end, the youngest gives
its own to an older one: it is suspended, waits and goes on later with the same text. A stream that lacks cells with no
other beside it ends by its length.

A piece of a prompt is so long that it takes about as long as two steps, so a long prompt slows the other streams down
to a third at most. A job waits while another reads the same beginning, and then takes it over. Knows nothing of HTTP.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from memdec_edge.engine import Engine
from memdec_edge.engine.scoring import Scoring
from memdec_edge.errors import (
    BusyError,
    Cancelled,
    ContextError,
    DecodeError,
    MemdecError,
    OptionError,
    OverloadError,
    UnavailableError,
)
from memdec_edge.options import MAX_DRAFT
from memdec_edge.server.job import End, Event, Job, Progress, Scores
from memdec_edge.server.totals import Totals
from memdec_edge.streams import Stream

T = TypeVar("T")
SLICE = 64  # tokens that a stream reserves ahead
AHEAD = MAX_DRAFT + 2  # tokens below which it reserves the next slice, so that drafts find room
SHARED = 32  # tokens of a common beginning that are worth waiting for
LEAST = 16  # tokens of a piece
STEPS = 2.0  # that a piece of a prompt may take as long as
ENDING = "the server is about to end"

log = logging.getLogger("memdec_edge.server")


class Scheduler:
    """Serves jobs on an engine, in a thread of its own. Threads may submit and cancel jobs at any time.

    queue: jobs that wait at most. active: those that have a slot, the oldest first; waiting: the others.
    """

    def __init__(self, engine: Engine, queue: int) -> None:
        self.engine, self.totals = engine, Totals()
        self.active: list[Job] = []
        self.waiting: list[Job] = []
        self._queue, self._last_read = queue, -1
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closing = self._stopped = False
        self._wake = threading.Condition()  # guards the lists, which only the thread empties
        self._step_seconds = self._read_rate = 0.0  # measured: seconds of a step, tokens of a prompt in a second
        self._thread = threading.Thread(target=self._run, name="memdec-scheduler", daemon=True)
        self._thread.start()

    # --- for other threads ------------------------------------------------------------------------------------------

    def check(self, job: Job) -> None:
        """Raise what makes a job impossible: ContextError for a long prompt, OptionError for what cannot be followed.

        Sets how many tokens the job may come to hold: n_predict more than the prompt, or what the context has room for.
        """
        request = job.request
        if not request.tokens:
            raise OptionError("prompt", "empty", "give some text to continue")
        job.room = self.engine.longest(request.mixture.running().memories)
        wanted, length = request.generation.n_predict, len(request.tokens)
        if length + (wanted != 0) > job.room:
            raise ContextError(length, 0, job.room)
        job.cap = job.room if wanted < 0 else min(job.room, length + wanted)
        if request.sampling.grammar or request.sampling.json_schema or request.sampling.logit_bias:
            self.engine.check(request.sampling)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Serve jobs that check() let through. Raises OverloadError and, at the end, UnavailableError."""
        with self._wake:
            if self._closing:
                raise UnavailableError(ENDING)
            if len(self.waiting) + len(self.active) + len(jobs) > self._queue + self.engine.cells.n_seq:
                self.totals.refused += len(jobs)
                raise OverloadError(len(self.waiting), self.totals.patience(len(self.waiting)))
            self.waiting += jobs
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Give the place of a job back as soon as the decode at work ends. It is told nothing more."""
        with self._wake:
            job.cancelled = True
            self._wake.notify()

    def call(self, work: Callable[[], T]) -> "Future[T]":
        """Let the thread do some other work with the engine, between two turns."""
        done: Future[T] = Future()
        with self._wake:
            if self._stopped:
                raise UnavailableError(ENDING)
            self._calls.append((work, done))
            self._wake.notify()
        return done

    def drain(self, seconds: float) -> None:
        """Take nothing more on, tell jobs without a slot so, and end the others after `seconds` at the latest."""
        with self._wake:
            if self._closing:
                return
            self._closing = True
            fresh = [job for job in self.waiting if not job.stream]
            self.waiting = [job for job in self.waiting if job.stream]
            self._wake.notify()
        for job in fresh:
            self._tell(job, UnavailableError(ENDING))
        timer = threading.Timer(seconds, self.stop)
        timer.daemon = True
        timer.start()

    def stop(self) -> None:
        """End all jobs, and wait for the thread."""
        with self._wake:
            self._closing = self._stopped = True
            self._wake.notify()
        self.engine.cancel()
        self._thread.join()

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._has_work():
            try:
                self._turn()
            except Cancelled:
                pass  # all sessions stand where they stood
            except Exception as error:  # a fault of ours ends these streams, and not the server
                log.exception("a turn of the scheduler failed")
                for job in list(self.active):
                    self._fail(job, DecodeError(f"the server failed at this request ({type(error).__name__})"))
        for job in [*self.active, *self.waiting]:
            self._fail(job, UnavailableError(ENDING))
        for _, done in self._calls:
            done.set_exception(UnavailableError(ENDING))

    def _has_work(self) -> bool:
        with self._wake:
            while not (self._calls or self.waiting or self.active or self._closing):
                self._wake.wait()
            return not self._stopped and bool(self._calls or self.waiting or self.active)

    def _turn(self) -> None:
        while self._calls:
            work, done = self._calls.popleft()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)
        for job in [job for job in (*self.active, *self.waiting) if job.cancelled]:
            self.totals.cancelled += 1
            self._close(job)
        self._admit()
        self._read()
        self._step()

    # --- admission --------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give slots to the oldest jobs that wait, as long as there are slots and cells."""
        for job in sorted(self.waiting, key=lambda job: job.born):
            cells = self.engine.cells
            if len(self.active) == cells.n_seq or cells.free < self._wanted(job):
                return
            if self._is_being_read(job):
                continue
            try:
                self._open(job)
            except BusyError:
                return
            except MemdecError as error:
                self._fail(job, error)
                continue
            with self._wake:
                self.waiting.remove(job)
            self.active = sorted([*self.active, job], key=lambda job: job.born)

    def _wanted(self, job: Job) -> int:
        """Cells with which a job begins, or goes on; one that was suspended asks for more, so as not to be so again."""
        ahead = SLICE * (4 if job.stream and self.active else 1)
        return min(job.cap, job.n_tokens + ahead)

    def _is_being_read(self, job: Job) -> bool:
        """Whether another job reads the beginning of this one's prompt now."""
        if job.stream or job.score is not None:
            return False
        for other in self.active:
            if other.reading and other.stream and other.score is None:
                held = len(self.engine.context.tokens[other.stream.session.slot])
                if _common(job.request.tokens, other.request.tokens) - held > SHARED:
                    return True
        return False

    def _open(self, job: Job) -> None:
        request, limit = job.request, min(job.cap, job.n_tokens + SLICE)
        if job.stream:
            job.stream.session.resume(limit)
            return
        scored = job.score is not None  # such a prompt is read from its first token on
        session = self.engine.session(
            () if scored else request.tokens,
            request.sampling,
            request.generation,
            mixture=request.mixture,
            limit=limit,
            rates=None if scored else request.rates,
        )
        if job.score is not None:
            session.extend(request.tokens, 1.0 if request.rates is None else request.rates)
            job.scoring = Scoring(session, job.score)
        job.stream = Stream(self.engine, session)
        self.totals.begin(job.stream.timings())
        self._tell_progress(job, job.stream.timings().cache_n)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read a piece of one prompt; the jobs that read take turns."""
        reading = [job for job in self.active if job.reading]
        if not reading:
            return
        job = next((job for job in reading if job.born > self._last_read), reading[0])
        self._last_read = job.born
        assert job.stream
        most, begin = self._piece(), time.perf_counter()
        before = self.engine.context.n_decoded
        try:
            if job.scoring:
                left = job.scoring.read(most)
                if not left:
                    self._tell(job, Scores(job.scoring.scores))
                    job.scoring = None
                left = left or 1  # the session itself has not read them yet
            else:
                left = job.stream.read_some(most)
        except Cancelled:
            raise
        except MemdecError as error:
            self._fail(job, error)
            return
        seconds, count = time.perf_counter() - begin, self.engine.context.n_decoded - before
        self.totals.read(count, seconds)
        if count:
            self._read_rate = _average(self._read_rate, count / seconds)
        job.reading = left > 0
        self._tell_progress(job, job.n_tokens - left - 1 if left else job.n_tokens)
        if not job.reading and self._is_over(job):
            self._end(job)

    def _piece(self) -> int:
        """Tokens of a prompt that are read in one go."""
        most = self.engine.context.n_batch
        if all(job.reading for job in self.active):
            return most
        return min(max(int(STEPS * self._step_seconds * self._read_rate), LEAST), most)

    def _step(self) -> None:
        """Step all streams whose prompts are read and that have room for a token."""
        able = [job for job in list(self.active) if job in self.active and not job.reading and self._find_room(job)]
        if not able:
            return
        begin = time.perf_counter()
        sessions = [job.stream.session for job in able if job.stream]
        try:
            samples = self.engine.step(sessions)
        except Cancelled:
            raise
        except MemdecError as error:
            if len(able) == 1:
                self._fail(able[0], error)
                return
            samples = [self._step_alone(job) for job in able]  # whichever it was, the others go on
        seconds = time.perf_counter() - begin
        self._step_seconds = _average(self._step_seconds, seconds)
        self.totals.step(len(able), seconds)
        for job, found in zip(able, samples, strict=True):
            if job not in self.active or not job.stream:
                continue
            for chunk in job.stream.take(found, seconds):
                self.totals.add(chunk)
                self._tell(job, chunk)
            if self._is_over(job):
                self._end(job)

    def _step_alone(self, job: Job) -> list[Any]:
        assert job.stream
        try:
            return self.engine.step([job.stream.session])[0]
        except Cancelled:
            raise
        except MemdecError as error:
            self._fail(job, error)
            return []

    def _find_room(self, job: Job) -> bool:
        """Reserve the next slice where it is due; younger jobs give way. Return whether there is room for a token.

        A job that finds none waits for older ones; without any it ends.
        """
        assert job.stream
        session = job.stream.session
        while session.limit < job.cap and session.limit - len(session.tokens) < AHEAD:
            limit = min(job.cap, len(session.tokens) + SLICE, session.limit + self.engine.cells.free)
            if limit > session.limit:
                session.grow(limit)
            if session.limit > len(session.tokens):
                return True
            younger = [other for other in self.active if other.born > job.born]
            if younger:
                self._suspend(younger[-1])
            elif self.active == [job]:
                self._end(job)
                return False
            else:
                return False
        return True

    def _suspend(self, job: Job) -> None:
        assert job.stream
        job.stream.session.suspend()
        job.reading = True
        self.active.remove(job)
        self.totals.suspended += 1
        with self._wake:
            self.waiting.append(job)

    # --- ends -------------------------------------------------------------------------------------------------------

    def _is_over(self, job: Job) -> bool:
        assert job.stream
        session = job.stream.session
        return job.stream.over and not (session.finished == "length" and len(session.tokens) < job.cap)

    def _end(self, job: Job) -> None:
        assert job.stream
        stream, session = job.stream, job.stream.session
        try:
            chunk = stream.end()
        except MemdecError as error:
            self._fail(job, error)
            return
        short = len(session.tokens) < job.cap or job.cap == job.room
        event = End(chunk, stream.text.stop, short and chunk.finish_reason == "length", session.slot)
        self.totals.end(stream.timings(), len(session.tokens))
        self._close(job)
        self._tell(job, event)

    def _fail(self, job: Job, error: MemdecError) -> None:
        self.totals.failed += 1
        self._close(job)
        self._tell(job, error)

    def _close(self, job: Job) -> None:
        """Give back what a job holds, wherever it stands."""
        if job.stream:
            job.stream.session.close()
        with self._wake:
            self.active = [other for other in self.active if other is not job]
            self.waiting = [other for other in self.waiting if other is not job]

    # --- events -----------------------------------------------------------------------------------------------------

    def _tell_progress(self, job: Job, processed: int) -> None:
        if job.progress and job.stream:
            timings = job.stream.timings()
            self._tell(job, Progress(len(job.request.tokens), timings.cache_n, processed, timings))

    def _tell(self, job: Job, event: Event) -> None:
        if not job.cancelled:
            job.listener(event)


def _average(before: float, value: float) -> float:
    """A mean that forgets."""
    return value if not before else 0.8 * before + 0.2 * value


def _common(tokens: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two lists have in common from the start."""
    shorter = min(len(tokens), len(others))
    if tokens[:shorter] == others[:shorter]:
        return shorter
    return next(at for at in range(shorter) if tokens[at] != others[at])
