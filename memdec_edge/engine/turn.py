"""What one session does in a round: what it drafts, which rows it gets, what the mixture samples from them.

Knows nothing of other sessions, decodes nothing and measures nothing.
"""

from collections.abc import Sequence

from memdec_edge.engine.session import Session
from memdec_edge.errors import MemdecError, NumericsError
from memdec_edge.mixture.online import learn_from
from memdec_edge.mixture.rows import Found, Row, Sampled
from memdec_edge.mixture.top import with_tops
from memdec_edge.options import MAX_DRAFT


class Turn:
    """What one session does in a round."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.start = len(session.tokens)
        # Tokens that may be drafted: a round may emit one more than that.
        drafts = (session.memories or session.indexes) and session.rolls_back
        self.room = min(session.limit - self.start - 1, MAX_DRAFT) if drafts else 0
        self.length = 0  # tokens to draft
        self.by_index = False  # the indexes draft them, and the memories read them as one batch
        self.promise: Sequence[float] = ()  # see DraftPolicy.promise()
        self.draft: list[int] = []
        self.found: list[list[Found]] = []  # of each index, before the draft and after each drafted token
        self.guesses = False  # nothing is drafted, but what would have been is compared
        self.guess: int | None = None
        self.rows = 0  # of the memories, decoded so far
        self.verified = 0  # rows
        self.base_rows: Row
        self.samples: list[Sampled] = []
        self.accepted = 0  # drafted tokens that the mixture sampled too
        self.over = False  # a sample differed from the draft, or ended the text
        self.error: MemdecError | None = None  # of this session alone

    @property
    def unread(self) -> list[int]:
        """The tokens that the memories have not read."""
        return [self.session.tokens[-1], *self.draft][self.rows :]

    def draft_next(self) -> int | None:
        """What the memories alone sample after their newest row: a draft, or a guess that only measures acceptance."""
        s = self.session
        rows = [s.drafted[memory][self.rows - 1] for memory in s.memories]
        return s.sampler.draft(rows, s.mixture, self.start + self.rows - 1, s.suppressed, s.row)

    def draft_by_index(self) -> None:
        """Take what the indexes find as the draft, up to an id that base or memories lack."""
        s = self.session
        draft, self.found = s.lookup.draft(s.tokens, self.length)
        known = next((at for at, token in enumerate(draft) if token >= s.unknown_tokens.start), len(draft))
        self.draft, self.found = draft[:known], self.found[: known + 1]
        self.length = known

    def look_up(self) -> None:
        """Ask the indexes about every position of the draft, unless they drafted it themselves."""
        s = self.session
        if s.indexes and not self.found:
            tokens = [*s.tokens, *self.draft]
            self.found = [s.lookup.found(tokens, length) for length in range(self.start, len(tokens) + 1)]

    def verify(self, end: int) -> None:
        """Let the mixture of rows up to `end` sample, until a sample differs from the draft or ends the text.

        An error of these rows or of the session's grammar ends this turn alone.
        """
        s, first = self.session, self.verified
        self.verified = end
        memory_rows = [s.drafted[memory][first:end] for memory in s.memories]
        rule, found = s.weighing.generated_rule, self.found[first:end]
        try:
            samples, s.stats, last = s.sampler.verify(
                self.base_rows[first:end], memory_rows, s.mixture, rule, self.start + first, s.suppressed,
                self.draft[first:end], s.row, s.base.eog_tokens, found if s.indexes else None,
            )  # fmt: skip
        except NumericsError as error:
            self.error, self.over = error, True
            return
        if s.generation.logprobs:
            base, temperatures = self.base_rows[first:end], s.mixture.temperatures
            samples = with_tops(samples, base, memory_rows, found, temperatures, s.generation.logprobs, s.row)
        for number, sample in enumerate(samples):
            if number == len(samples) - 1:
                after = last
            else:
                classes = [one.klass for one in found[number]] if s.indexes else []
                after = learn_from(s.mixture, rule, sample, classes) if rule else s.mixture
            agrees = len(self.samples) < len(self.draft) and sample.token == self.draft[len(self.samples)]
            self.samples.append(sample)
            self.accepted += agrees
            if sample.token in s.base.eog_tokens:
                s.finished, self.over = "stop", True
                return
            s.emit(sample, after)
            self.over = not agrees
