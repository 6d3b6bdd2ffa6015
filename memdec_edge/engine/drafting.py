"""How many tokens to draft: measured costs, measured acceptance, and the length that gives most tokens per second.

A round drafts g tokens, evaluates the base on g + 1 rows and emits 1 to g + 1 tokens. Memories draft step by step.
Indexes draft without a model, and then the memories read the draft as one batch. The cost of rows is no curve but a
table: on a CPU four rows can cost less than three, since llama.cpp has kernels for some shapes only. So the policy
tries and times each length. Knows nothing of models and tokens.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memdec_edge.mixture.match import class_of
from memdec_edge.mixture.rows import LONGEST

MAX_ROWS = 8  # of the base in one round, all sessions together, when the length is chosen by measurement
PRIOR = 0.7  # acceptance before anything was seen
# The same of what an index drafts, by class of match length: how often it was right on held-out medicine and licences.
FOUND_PRIOR = (0.2, 0.25, 0.35, 0.4, 0.5, 0.65, 0.75, 0.9)
FOUND_SEEN = 16  # tokens that FOUND_PRIOR counts as
FOUND_LENGTHS = (3, 7, 15)  # what indexes may draft: rows by fours, and few lengths, since each is tried
LEAST_PROMISE = 0.35  # indexes whose first token is accepted more seldom do not draft
DECAY = 1 / 32  # share of the newest drafted token in the running acceptance
KEPT = 5  # measurements of a cost whose median counts
TRIALS = 3  # visits of a length before it is judged; the first is not counted
CONTENDER = 0.85  # lengths that promise this share of the best rate are measured again
STALE = 64  # every so many rounds
PATIENCE = 1024  # rounds until other lengths are, then twice as many: a busy machine may have spoiled their costs
SPOILED = 3  # a length that could not win were it so many times cheaper is not measured again
SETTLING = 2  # rounds after a change of the way of decoding that do not count: waiting threads still spin


class Cost:
    """Seconds of one kind of work: the median of its last measurements, the first left out (llama.cpp warms up)."""

    def __init__(self) -> None:
        self.visits = 0
        self.seen = 0  # number of the round of the last measurement
        self.patience = PATIENCE
        self.seconds = 0.0
        self._recent: deque[float] = deque(maxlen=KEPT)

    def add(self, seconds: float, now: int) -> None:
        """Take a measurement of round `now`."""
        if self.visits == 1 or now - self.seen > STALE:  # an old measurement may be of a busier machine
            self._recent.clear()
        self.visits += 1
        self.seen = now
        self._recent.append(seconds)
        self.seconds = sorted(self._recent)[(len(self._recent) - 1) // 2]  # noise only adds, so of two the lower


class Acceptance:
    """The decayed share of accepted tokens among drafted ones; at first as if `seen` tokens had shown `value`."""

    def __init__(self, value: float = PRIOR, seen: int = 4) -> None:
        self.value = value
        self._seen = seen

    def add(self, accepted: int, rejected: bool) -> None:
        """Count `accepted` drafted tokens in a row, and after them a rejected one if there was one."""
        for hit in [1.0] * accepted + [0.0] * rejected:
            self._seen += 1
            self.value += max(DECAY, 1 / self._seen) * (hit - self.value)


@dataclass(frozen=True)
class Plan:
    """One round: tokens drafted for each session, whether base and memories decode at the same time, and who drafts.

    found: the indexes, at most `length` tokens for a session that has a match; else the memories.
    """

    length: int
    overlap: bool = False
    found: bool = False

    def drafted(self, acceptance: float | None, promise: Sequence[float]) -> int:
        """Tokens drafted for a session; see DraftPolicy.choose()."""
        if self.found:
            return min(self.length, len(promise))
        return 0 if acceptance is None else self.length


def expected_tokens(acceptance: float, length: int) -> float:
    """Tokens that a round emits on average: sum of a^i for i = 0 .. length (Leviathan et al., 2211.17192, eq. 1)."""
    total, likely = 1.0, 1.0
    for _ in range(length):
        likely *= acceptance
        total += likely
    return total


def promised_tokens(promise: Sequence[float], length: int) -> float:
    """The same, where each drafted token has an acceptance of its own."""
    total, likely = 1.0, 1.0
    for acceptance in promise[:length]:
        likely *= acceptance
        total += likely
    return total


class DraftPolicy:
    """The table of costs, and the choice of a length.

    overlaps: ways of decoding that may be tried, (False,) or (False, True). overlaps_drafts: whether rounds that draft
    may overlap too; they gain little where the two ways divide threads differently.

    The table times a pass of the base by (rows, overlap, found); with overlap that time includes what the memories read
    at the same time, which is one token, or all rows of a draft of the indexes (found). It times a pass of the memories
    by (who, rows), where `who` numbers the memories that take part.
    """

    def __init__(self, overlaps: tuple[bool, ...] = (False,)) -> None:
        self.overlaps, self.overlaps_drafts = overlaps, True
        self.acceptance = Acceptance()  # of all sessions; what a new one starts from
        self.rounds = 0
        self._way, self._rounds_of_way = False, SETTLING  # the way of decoding at present, and since when
        self.found = [Acceptance(value, FOUND_SEEN) for value in FOUND_PRIOR]  # by class of match length, from 1 on
        self.base: defaultdict[tuple[int, bool, bool], Cost] = defaultdict(Cost)
        self.memory: defaultdict[tuple[tuple[int, ...], int], Cost] = defaultdict(Cost)

    def promise(self, length: int, most: int) -> list[float]:
        """The acceptance of each of `most` tokens that an index drafts after a match of `length`, which they lengthen.

        Empty without a match, and where the first token is not worth a row.
        """
        if not length or self.found[class_of(length) - 1].value < LEAST_PROMISE:
            return []
        return [self.found[class_of(min(length + j, LONGEST)) - 1].value for j in range(most)]

    def add_found(self, klass: int, right: bool) -> None:
        """Count whether a token was the likeliest continuation of the longest match."""
        if klass:
            self.found[klass - 1].add(int(right), not right)

    def add_base(self, rows: int, overlap: bool, seconds: float, found: bool = False) -> None:
        """Time a pass of the base, unless the way of decoding changed just before it."""
        self._rounds_of_way = self._rounds_of_way + 1 if overlap == self._way else 0
        self._way = overlap
        if self._rounds_of_way < SETTLING:
            return
        self.base[rows, overlap, found and overlap].add(seconds, self.rounds)

    def add_memory(self, who: tuple[int, ...], rows: int, seconds: float) -> None:
        """Time a pass of all memories in `who` together."""
        self.memory[who, rows].add(seconds, self.rounds)

    def choose(
        self,
        acceptances: Sequence[float | None],
        others: int,
        who: tuple[int, ...],
        lengths: Iterable[int],
        promises: Sequence[Sequence[float]] = (),
        found_lengths: Iterable[int] = (),
    ) -> Plan:
        """The plan with the most expected tokens per second for len(acceptances) >= 1 drafting sessions.

        acceptances: of each session's memories, None where it has none. others: rows of sessions that do not draft.
        lengths: those that memories may draft, 0 among them unless the user asked for one. promises: for each session,
        see promise(); found_lengths: those that indexes may draft.
        A plan with less than TRIALS visits goes first, if it could win at the least that its rows may cost. So does a
        plan whose last measurement is old, if it could win.
        """
        self.rounds += 1
        plans = [
            Plan(length, overlap)
            for length in lengths
            for overlap in self.overlaps
            if not (length and overlap) or self.overlaps_drafts
        ]
        promises = promises or [()] * len(acceptances)
        plans += [
            Plan(length, overlap, found=True)
            for length in found_lengths
            for overlap in self.overlaps
            if not overlap or (self.overlaps_drafts and who)
        ]
        if len(plans) == 1:
            return plans[0]
        sessions = list(zip(acceptances, promises, strict=True))
        keys = {
            plan: (
                others + sum(1 + plan.drafted(*session) for session in sessions),
                plan.overlap,
                plan.found and plan.overlap,
            )
            for plan in plans
        }
        best, rates, untried = 0.0, dict[Plan, float](), list[tuple[Plan, float]]()
        for plan in plans:
            cost = self.base.get(keys[plan])
            new = cost is None or cost.visits < TRIALS
            seconds = self._least(plan, keys[plan][0]) if cost is None or new else cost.seconds
            rate = self._rate(sessions, others, who, plan, seconds)
            if new:
                untried.append((plan, rate))
            else:
                rates[plan] = rate
                best = max(best, rate)
        for plan, promise in untried:
            if promise > best:
                return plan
        for plan, rate in rates.items():
            cost = self.base[keys[plan]]
            hope = self._rate(
                sessions, others, who, plan, max(self._least(plan, keys[plan][0]), cost.seconds / SPOILED)
            )
            contends = rate >= CONTENDER * best
            if hope > best and self.rounds - cost.seen > (STALE if contends else cost.patience):
                cost.patience *= 1 if contends else 2
                return plan
        return max(rates, key=rates.__getitem__)

    def _least(self, plan: Plan, rows: int) -> float:
        """Seconds that a pass of `plan` takes at least: as the cheapest known.

        Of the long drafts of an index: also as any of half the rows, or free text would pay for trials.
        """
        cheapest = min((cost.seconds for cost in self.base.values()), default=0.0)
        fewer = (cost.seconds for (n, way, _), cost in self.base.items() if 2 * n <= rows and way == plan.overlap)
        return max(fewer, default=cheapest) if plan.found else cheapest

    def _rate(
        self,
        sessions: Sequence[tuple[float | None, Sequence[float]]],
        others: int,
        who: tuple[int, ...],
        plan: Plan,
        base_seconds: float,
    ) -> float:
        """Expected tokens per second of a plan; sessions: acceptance and promise of each."""
        tokens, all_accepted, rows = float(others), 0.0, 0
        for acceptance, promise in sessions:
            drafted = plan.drafted(acceptance, promise)
            rows += drafted + 1
            if plan.found:
                tokens += promised_tokens(promise, drafted)
            else:
                tokens += expected_tokens(acceptance or 0.0, drafted)
                all_accepted = max(all_accepted, (acceptance or 0.0) ** drafted)
        if plan.found:
            steps, step = float(not plan.overlap), self.memory.get((who, rows)) or self._cheapest_pass(who)
        else:
            steps, step = plan.length + (0.0 if plan.overlap else all_accepted), self.memory.get((who, len(sessions)))
        return tokens / max(base_seconds + steps * (step.seconds if step else 0.0), 1e-9)

    def _cheapest_pass(self, who: tuple[int, ...]) -> Cost | None:
        """The least that these memories have taken, for rows that they never read at once."""
        return min(
            (cost for (same, _), cost in self.memory.items() if same == who), key=lambda c: c.seconds, default=None
        )
