"""What the scheduler did since it began, in numbers, which only its thread changes.

Knows nothing of how they are shown.
"""

import time
from dataclasses import dataclass, field

from memdec_edge.api.results import Chunk, Timings


@dataclass
class Totals:
    """Tokens, seconds and counts of all requests.

    prompt_tokens: read; cached_tokens: found in the contexts. share: the sum of the shares that memories had in emitted
    tokens; weight: the sum of their weights then. busy: the sum of streams over all steps. longest: tokens of a stream.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_seconds: float = 0.0
    predicted_tokens: int = 0
    predicted_seconds: float = 0.0
    steps: int = 0
    reads: int = 0
    busy: int = 0
    longest: int = 0
    share: float = 0.0
    weight: float = 0.0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    suspended: int = 0
    drafted: int = 0
    accepted: int = 0
    began: float = field(default_factory=time.monotonic)

    def begin(self, timings: Timings) -> None:
        """A stream has a slot."""
        self.cached_tokens += timings.cache_n
        self.prompt_tokens += timings.prompt_n

    def read(self, n_tokens: int, seconds: float) -> None:
        """A piece of a prompt was read."""
        self.reads += n_tokens > 0
        self.prompt_seconds += seconds

    def step(self, n_streams: int, seconds: float) -> None:
        """All streams at work were stepped."""
        self.steps += 1
        self.busy += n_streams
        self.predicted_seconds += seconds

    def add(self, chunk: Chunk) -> None:
        """A token was emitted."""
        self.predicted_tokens += 1
        self.share += chunk.share or 0.0
        self.weight += sum(chunk.weights[1:])

    def end(self, timings: Timings, n_tokens: int) -> None:
        """A stream came to its end."""
        self.finished += 1
        self.drafted += timings.draft_n
        self.accepted += timings.draft_n_accepted
        self.longest = max(self.longest, n_tokens)

    def patience(self, waiting: int) -> int:
        """Seconds until a request that comes now may find a place, at least 1."""
        each = (time.monotonic() - self.began) / max(self.finished, 1)
        return min(max(round(each * max(waiting, 1) / 2), 1), 60)
