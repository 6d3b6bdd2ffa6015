"""What one session does in a round: what it drafts, which rows it gets, what the mixture samples from them.

Knows nothing of other sessions, decodes nothing and measures nothing.
"""

from dataclasses import replace
from itertools import zip_longest

from memdec_edge.engine.session import Session
from memdec_edge.errors import MemdecError, NumericsError
from memdec_edge.mixture.rows import Row, Sampled
from memdec_edge.mixture.top import with_tops
from memdec_edge.options import MAX_DRAFT


class Turn:
    """What one session does in a round."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.start = len(session.tokens)
        # Tokens that may be drafted: a round may emit one more than that.
        self.room = min(session.limit - self.start - 1, MAX_DRAFT) if session.memories and session.rolls_back else 0
        self.length = 0  # tokens to draft
        self.draft: list[int] = []
        self.guesses = False  # nothing is drafted, but what would have been is compared
        self.guess: int | None = None
        self.rows = 0  # of the memories, decoded so far
        self.base_rows: Row
        self.samples: list[Sampled] = []
        self.accepted = 0  # drafted tokens that the mixture sampled too
        self.over = False  # a sample differed from the draft, or ended the text
        self.error: MemdecError | None = None  # of this session alone

    @property
    def newest(self) -> int:
        """The token that the memories have not read."""
        return self.draft[-1] if self.draft else self.session.tokens[-1]

    def draft_next(self) -> int | None:
        """What the memories alone sample after their newest row: a draft, or a guess that only measures acceptance."""
        s = self.session
        rows = [s.drafted[memory][self.rows - 1] for memory in s.memories]
        return s.sampler.draft(rows, s.mixture, self.start + self.rows - 1, s.suppressed, s.row)

    def verify(self, first: int, end: int) -> None:
        """Let the mixture of rows [first, end) sample, until a sample differs from the draft or ends the text.

        An error of these rows or of the session's grammar ends this turn alone.
        """
        s = self.session
        memory_rows = [s.drafted[memory][first:end] for memory in s.memories]
        try:
            samples, s.stats, after = s.sampler.verify(
                self.base_rows[first:end], memory_rows, s.mixture, s.generated_rule, self.start + first, s.suppressed,
                self.draft[first:end], s.row, s.base.eog_tokens,
            )  # fmt: skip
        except NumericsError as error:
            self.error, self.over = error, True
            return
        if s.generation.logprobs:
            samples = with_tops(
                samples, self.base_rows[first:end], memory_rows, s.mixture.temperatures, s.generation.logprobs, s.row
            )
        for sample, following in zip_longest(samples, samples[1:]):
            agrees = len(self.samples) < len(self.draft) and sample.token == self.draft[len(self.samples)]
            self.samples.append(sample)
            self.accepted += agrees
            if sample.token in s.base.eog_tokens:
                s.finished, self.over = "stop", True
                return
            s.emit(sample, after if following is None else replace(after, weights=following.weights[1:]))
            self.over = not agrees
