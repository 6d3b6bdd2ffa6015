"""One stream of tokens that the scheduler serves, and the events that it tells of it. Knows nothing of HTTP."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from memdec_edge.api.results import Chunk, Timings
from memdec_edge.api.streams import Request, Stream
from memdec_edge.engine.scoring import Scoring
from memdec_edge.errors import MemdecError
from memdec_edge.mixture.rows import Sampled


@dataclass(frozen=True)
class Progress:
    """How much of a prompt is read: tokens in all, found in the contexts, and read or found so far."""

    total: int
    cached: int
    processed: int
    timings: Timings


@dataclass(frozen=True)
class Scores:
    """Of the tokens of a prompt, from the second one on."""

    scores: list[Sampled]


@dataclass(frozen=True)
class End:
    """The last chunk of a stream. stop: the stop string that ended it; truncated: the context had no more room."""

    chunk: Chunk
    stop: str | None
    truncated: bool
    slot: int


Event = Chunk | Progress | Scores | End | MemdecError  # the last is an End or an error
_ages = count()


class Job:
    """A request for one stream.

    listener: is told each event, in the scheduler's thread. score: tell of the prompt's tokens first, with so many
    likeliest ones each; None: do not. progress: tell of it. cap: tokens, prompt and answer, at most. born: its age, the
    oldest job has the lowest.
    """

    def __init__(
        self,
        request: Request,
        listener: Callable[[Event], None],
        *,
        score: int | None = None,
        progress: bool = False,
    ) -> None:
        self.request, self.listener = request, listener
        self.score, self.progress = score, progress
        self.born = next(_ages)
        self.cap = 0  # the scheduler sets it
        self.room = 0  # what the context would allow
        self.cancelled = False  # any thread may set it
        self.reading = True  # the prompt, or all tokens after a suspension
        self.stream: Stream | None = None
        self.scoring: Scoring | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens so far."""
        return len(self.stream.session.tokens) if self.stream else len(self.request.tokens)

    @property
    def n_unread(self) -> int:
        """Tokens that it has still to read; those that want a score come first."""
        if self.scoring:
            return self.scoring.n_unread
        return self.stream.session.n_unread if self.stream else 0
