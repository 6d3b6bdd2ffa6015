"""The one thread that steps the engine: what is decoded next, and who is told of it.

A turn of the thread gives slots to jobs (admission.py), reads pieces of prompts in common batches and steps all streams
that are read. The pieces together take about as long as a step, so prompts slow the other streams down to about a half.
A stream that lacks cells with no other beside it ends by its length. Knows nothing of HTTP.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from memdec_edge.api.streams import read_together
from memdec_edge.engine import Engine
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
from memdec_edge.server.admission import Admission
from memdec_edge.server.job import End, Event, Job, Progress, Scores
from memdec_edge.server.totals import Totals

T = TypeVar("T")
LEAST = 8  # tokens of prompts in a turn: with 16 a long prompt held the other streams up by a third longer
STEPS = 1.0  # that these take as long as: with 2.0 the gap between tokens grew more than threefold
ENDING = "the server is about to end"

log = logging.getLogger("memdec_edge.server")


class Scheduler:
    """Serves jobs on an engine, in a thread of its own. Threads may submit and cancel jobs at any time.

    queue: jobs that wait at most.
    """

    def __init__(self, engine: Engine, queue: int) -> None:
        self.engine, self.totals = engine, Totals()
        self._queue = queue
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closing = self._stopped = False
        self._wake = threading.Condition()  # guards what several threads change
        self._admission = Admission(engine, self.totals, self._wake)
        self._timer: threading.Timer | None = None  # of drain()
        self._step_seconds = self._read_rate = 0.0  # measured: seconds of a step, tokens of a prompt in a second
        self._thread = threading.Thread(target=self._run, name="memdec-scheduler", daemon=True)
        self._thread.start()

    @property
    def active(self) -> list[Job]:
        """The jobs that have a slot, the oldest first."""
        return self._admission.active

    @property
    def waiting(self) -> list[Job]:
        """The others."""
        return self._admission.waiting

    # --- for other threads ------------------------------------------------------------------------------------------

    def check(self, job: Job) -> None:
        """Raise what makes a job impossible: ContextError for a long prompt, OptionError for what cannot be followed.

        Sets how many tokens the job may come to hold: n_predict more than the prompt, or what the context has room for.
        """
        request = job.request
        if not request.tokens:
            raise OptionError("prompt", "empty", "give some text to continue")
        memories = request.mixture.running().memories
        n_vocab = min([self.engine.base.n_vocab, *(memory.model.n_vocab for memory in memories)])
        if not 0 <= min(request.tokens) <= max(request.tokens) < n_vocab:
            raise OptionError("prompt", "a token id that some model lacks", f"ids are from 0 to {n_vocab - 1}")
        job.room = self.engine.longest(memories)
        wanted, length = request.generation.n_predict, len(request.tokens)
        if length + (wanted != 0) > job.room:
            raise ContextError(length, 0, job.room)
        job.cap = job.room if wanted < 0 else min(job.room, length + wanted)
        if request.sampling.grammar or request.sampling.json_schema or request.sampling.logit_bias:
            self.engine.check(request.sampling)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Serve jobs that check() let through. Raises OverloadError and, at the end, UnavailableError."""
        with self._wake:
            self.require_place(len(jobs))
            self.waiting.extend(jobs)
            self._wake.notify()

    def require_place(self, n_jobs: int) -> None:
        """Raise what submit() raises of so many jobs."""
        with self._wake:
            if self._closing:
                raise UnavailableError(ENDING)
            if len(self.waiting) + len(self.active) + n_jobs > self._queue + self.engine.cells.n_seq:
                self.totals.refused += n_jobs
                raise OverloadError(len(self.waiting), self.totals.patience(len(self.waiting)))

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
            self.waiting[:] = [job for job in self.waiting if job.stream]
            self._wake.notify()
        for job in fresh:
            self._tell(job, UnavailableError(ENDING))
        self._timer = threading.Timer(seconds, self.stop)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """End all jobs, and wait for the thread."""
        with self._wake:
            self._closing = self._stopped = True
            self._wake.notify()
        if self._timer:
            self._timer.cancel()
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
                for job in self.active or self.waiting:
                    self._fail(job, DecodeError(f"the server failed at this request ({type(error).__name__})"))
        for job in [*self.active, *self.waiting]:
            self._fail(job, UnavailableError(ENDING))
        for _, done in self._calls:
            if done.set_running_or_notify_cancel():
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
            self._admission.close(job)
        self._admit()
        self._read()
        self._step()

    def _admit(self) -> None:
        """Give slots to the oldest jobs that wait, as long as there are slots and cells."""
        while job := self._admission.next():
            fresh = job.stream is None
            try:
                self._admission.open(job)
            except BusyError:
                return
            except MemdecError as error:
                self._fail(job, error)
                continue
            if fresh and job.stream:
                self.totals.begin(job.stream.timings())
                self._tell_progress(job, job.stream.timings().cache_n)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read pieces of the prompts: how much of each, see divided()."""
        jobs = [job for job in self.active if job.reading]
        if not jobs:
            return
        unread = [job.n_unread for job in jobs]
        shares = divided(unread, self._most())
        pieces = {job: share for job, share, n in zip(jobs, shares, unread, strict=True) if share or not n}
        begin, before = time.perf_counter(), self.engine.context.n_decoded
        left = self._read_pieces({job: share for job, share in pieces.items() if not job.scoring})
        for job in [job for job in pieces if job.scoring]:
            left |= self._score_piece(job, pieces[job])
        seconds, count = time.perf_counter() - begin, self.engine.context.n_decoded - before
        self.totals.read(count, seconds)
        if count:
            self._read_rate = _average(self._read_rate, count / seconds)
        for job, n in left.items():
            job.reading = n > 0
            self._tell_progress(job, job.n_tokens - n - 1 if n else job.n_tokens)
            if not job.reading and self._is_over(job):
                self._end(job)

    def _read_pieces(self, pieces: Mapping[Job, int]) -> dict[Job, int]:
        """Read so many tokens of each prompt in common batches; return how many are left of those that did not fail."""
        streams = {job.stream: share for job, share in pieces.items() if job.stream}
        try:
            return dict(zip(pieces, read_together(self.engine, streams).values(), strict=True))
        except Cancelled:
            raise
        except MemdecError as error:
            if len(pieces) > 1:  # whichever it was, the others go on
                return {job: n for one in pieces for job, n in self._read_pieces({one: pieces[one]}).items()}
            for job in pieces:
                self._fail(job, error)
            return {}

    def _score_piece(self, job: Job, most: int) -> dict[Job, int]:
        """The same of a prompt whose tokens want scores, by itself: base and memories read it side by side."""
        assert job.scoring
        try:
            left = job.scoring.read(most)
        except Cancelled:
            raise
        except MemdecError as error:
            self._fail(job, error)
            return {}
        if not left:
            self._tell(job, Scores(job.scoring.scores))
            job.scoring = None
        return {job: left or 1}  # the session itself has not read them yet

    def _most(self) -> int:
        """Tokens of prompts that are read in one turn."""
        most = self.engine.context.n_batch
        if all(job.reading for job in self.active):
            return most
        return min(max(int(STEPS * self._step_seconds * self._read_rate), LEAST), most)

    def _step(self) -> None:
        """Step all streams whose prompts are read and that have room for a token."""
        able = []
        for job in list(self.active):
            if job in self.active and not job.reading:  # an older one may have suspended it
                room = self._admission.find_room(job)
                able += [job] if room == "room" else []
                if room == "none":
                    self._end(job)
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
        self._admission.close(job)
        self._tell(job, event)

    def _fail(self, job: Job, error: MemdecError) -> None:
        self.totals.failed += 1
        self._admission.close(job)
        self._tell(job, error)

    # --- events -----------------------------------------------------------------------------------------------------

    def _tell_progress(self, job: Job, processed: int) -> None:
        timings = job.stream.timings() if job.progress and job.stream else None
        if timings and not timings.predicted_n:  # a suspended stream reads again what it told of before
            self._tell(job, Progress(len(job.request.tokens), timings.cache_n, processed, timings))

    def _tell(self, job: Job, event: Event) -> None:
        if not job.cancelled:
            job.listener(event)


def _average(before: float, value: float) -> float:
    """A mean that forgets."""
    return value if not before else 0.8 * before + 0.2 * value


def divided(unread: Sequence[int], most: int) -> list[int]:
    """Divide `most` tokens of a turn among prompts, with so many unread tokens each, the oldest prompt first.

    The oldest gets at least an even share, so that shorter ones cannot hold it up. The rest goes to the shortest. Where
    some come to their end, longer ones get no more than an even share: the streams of those wait for the turn's end.
    """
    even = -(-most // max(sum(map(bool, unread)), 1))
    shares = [min(unread[0], even), *(0 for _ in unread[1:])]
    rest, ends = most - shares[0], False
    for at in sorted(range(len(unread)), key=unread.__getitem__):
        more = unread[at] - shares[at]
        if more > rest:
            more = min(rest, even - shares[at]) if ends else rest
        shares[at], rest = shares[at] + more, rest - more
        ends = ends or 0 < unread[at] == shares[at]
    return shares
