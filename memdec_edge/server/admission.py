"""Which jobs have a slot, and how many cells each reserves. Only the scheduler's thread changes that.

Jobs are served by age. A stream reserves cells for its prompt and a slice more, and grows by slices. Where cells end,
the youngest gives its own to an older one: it is suspended, waits and goes on later with the same text. A job waits
while another reads the same beginning, and then takes it over. Knows nothing of decoding.
"""

import threading
from typing import Literal

from memdec_edge.api.streams import Stream
from memdec_edge.engine import Engine
from memdec_edge.engine.scoring import Scoring
from memdec_edge.llama.context import common_length
from memdec_edge.options import MAX_DRAFT
from memdec_edge.server.job import Job
from memdec_edge.server.totals import Totals

SLICE = 64  # tokens that a stream reserves ahead
AHEAD = MAX_DRAFT + 2  # tokens below which it reserves the next slice, so that drafts find room
AGAIN = 4  # slices that must be free for a suspended stream, lest it be suspended again at once
SHARED = 32  # tokens of a common beginning that are worth waiting for


class Admission:
    """active: the jobs that have a slot, the oldest first; waiting: the others. `lock` guards both lists."""

    def __init__(self, engine: Engine, totals: Totals, lock: threading.Condition) -> None:
        self.engine, self._totals, self._lock = engine, totals, lock
        self.active: list[Job] = []
        self.waiting: list[Job] = []

    def next(self) -> Job | None:
        """The oldest job that waits and may begin now, if there is one."""
        cells = self.engine.cells
        for job in sorted(self.waiting, key=lambda job: job.born):
            if len(self.active) == cells.n_seq or cells.free < self._wanted(job):
                return None
            if not self._is_being_read(job):
                return job
        return None

    def _wanted(self, job: Job) -> int:
        """Cells with which a job begins, or goes on."""
        return min(job.cap, job.n_tokens + SLICE * (AGAIN if job.stream and self.active else 1))

    def _is_being_read(self, job: Job) -> bool:
        """Whether another job reads the beginning of this one's prompt now."""
        if job.stream or job.score is not None:
            return False
        for other in self.active:
            if other.reading and other.stream and other.score is None:
                held = len(self.engine.context.tokens[other.stream.session.slot])
                if common_length(job.request.tokens, other.request.tokens) - held > SHARED:
                    return True
        return False

    def open(self, job: Job) -> None:
        """Give a job its slot. Errors: see Engine.session() and Session.resume()."""
        request, limit = job.request, min(job.cap, job.n_tokens + SLICE)
        if job.stream:
            job.stream.session.resume(limit)
        else:
            scored = job.score is not None  # such a prompt is read from its first token on
            session = self.engine.session(
                () if scored else request.tokens,
                request.sampling,
                request.generation,
                mixture=request.mixture,
                limit=limit,
                rates=None if scored else request.rates,
            )
            try:
                if job.score is not None:
                    session.extend(request.tokens, 1.0 if request.rates is None else request.rates)
                    job.scoring = Scoring(session, job.score)
                job.stream = Stream(self.engine, session)
            except BaseException:
                session.close()
                raise
        with self._lock:
            self.waiting.remove(job)
            self.active = sorted([*self.active, job], key=lambda job: job.born)

    def find_room(self, job: Job) -> Literal["room", "later", "none"]:
        """Reserve the next slice where it is due; younger jobs give way. Say whether there is room for a token.

        Later there may be, once older jobs have ended; a job without others beside it finds none.
        """
        assert job.stream
        session = job.stream.session
        while session.limit < job.cap and session.limit - len(session.tokens) < AHEAD:
            limit = min(job.cap, len(session.tokens) + SLICE, session.limit + self.engine.cells.free)
            if limit > session.limit:
                session.grow(limit)
            if session.limit > len(session.tokens):
                break
            younger = [other for other in self.active if other.born > job.born]
            if not younger:
                return "none" if self.active == [job] else "later"
            self._suspend(younger[-1])
        return "room"

    def _suspend(self, job: Job) -> None:
        assert job.stream
        job.stream.session.suspend()
        job.reading = True
        self._totals.suspended += 1
        with self._lock:
            self.active.remove(job)
            self.waiting.append(job)

    def close(self, job: Job) -> None:
        """Take back what a job holds, wherever it stands."""
        if job.stream:
            job.stream.session.close()
        with self._lock:
            self.active = [other for other in self.active if other is not job]
            self.waiting = [other for other in self.waiting if other is not job]
