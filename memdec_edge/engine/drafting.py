"""How many tokens to draft: measured costs, measured acceptance, and the length that gives most tokens per second.

A round drafts g tokens with the memories, evaluates the base on g + 1 rows and emits 1 to g + 1 tokens. What some rows
cost is no curve but a table: on a CPU four can be cheaper than three (llama.cpp has kernels for some shapes and not for
others), so each length is tried and timed. Knows nothing of models and tokens.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_ROWS = 8  # of the base in one round, all sessions together, when the length is chosen by measurement
PRIOR = 0.7  # acceptance before anything was seen
DECAY = 1 / 32  # share of the newest drafted token in the running acceptance
KEPT = 5  # measurements of a cost whose median counts
TRIALS = 3  # visits of a length before it is judged; the first is not counted
CONTENDER = 0.85  # lengths that promise this share of the best rate are measured again
STALE = 64  # every so many rounds
PATIENCE = 1024  # rounds until others are, then twice as many, for a busy machine may have spoiled their costs,
SPOILED = 3  # but not if so many times cheaper they could not win
SETTLING = 2  # rounds after a change of the way of decoding in which threads that waited for the other still spin


class Cost:
    """Seconds of one kind of work: the median of its last measurements, the first left out (llama.cpp warms up)."""

    def __init__(self) -> None:
        self.visits = 0
        self.seen = 0  # number of the round of the last measurement
        self.patience = PATIENCE
        self.seconds = 0.0
        self._recent: deque[float] = deque(maxlen=KEPT)

    def add(self, seconds: float, now: int) -> None:
        """A measurement in round `now`."""
        if self.visits == 1 or now - self.seen > STALE:  # what was measured long ago, or beside other work, is void
            self._recent.clear()
        self.visits += 1
        self.seen = now
        self._recent.append(seconds)
        self.seconds = sorted(self._recent)[(len(self._recent) - 1) // 2]  # noise only ever adds: the lower of two


class Acceptance:
    """The decayed share of accepted tokens among drafted ones; at first as if `seen` tokens had shown `value`."""

    def __init__(self, value: float = PRIOR, seen: int = 4) -> None:
        self.value = value
        self._seen = seen

    def add(self, accepted: int, refused: bool) -> None:
        """`accepted` drafted tokens in a row, then one that was refused, or none."""
        for hit in [1.0] * accepted + [0.0] * refused:
            self._seen += 1
            self.value += max(DECAY, 1 / self._seen) * (hit - self.value)


@dataclass(frozen=True)
class Plan:
    """One round: tokens drafted for each session, and whether base and memories decode at the same time."""

    length: int
    overlap: bool = False


def expected_tokens(acceptance: float, length: int) -> float:
    """Tokens that a round emits on average: sum of a^i for i = 0 .. length (Leviathan et al., 2211.17192, eq. 1)."""
    total, likely = 1.0, 1.0
    for _ in range(length):
        likely *= acceptance
        total += likely
    return total


class DraftPolicy:
    """The table of costs, and the choice. `overlaps`: ways of decoding that may be tried, (False,) or (False, True);
    overlaps_drafts: in rounds that draft too, which have little to gain where the two ways divide threads differently.

    A base is timed by (rows, overlap), with overlap the memories' last step is in its time; a step of the memories by
    (who, rows), `who` naming the memories that take part.
    """

    def __init__(self, overlaps: tuple[bool, ...] = (False,)) -> None:
        self.overlaps, self.overlaps_drafts = overlaps, True
        self.acceptance = Acceptance()  # of all sessions; what a new one starts from
        self.rounds = 0
        self._way, self._rounds_of_way = False, SETTLING  # the way of decoding at present, and since when
        self.base: defaultdict[tuple[int, bool], Cost] = defaultdict(Cost)
        self.memory: defaultdict[tuple[tuple[int, ...], int], Cost] = defaultdict(Cost)

    def add_base(self, rows: int, overlap: bool, seconds: float) -> None:
        """A decode of the base that took `seconds`; not counted just after a change of the way of decoding."""
        self._rounds_of_way = self._rounds_of_way + 1 if overlap == self._way else 0
        self._way = overlap
        if self._rounds_of_way < SETTLING:
            return
        self.base[rows, overlap].add(seconds, self.rounds)

    def add_memory(self, who: tuple[int, ...], rows: int, seconds: float) -> None:
        """A step of all memories in `who` that took `seconds` in all."""
        self.memory[who, rows].add(seconds, self.rounds)

    def choose(self, acceptances: Sequence[float], others: int, who: tuple[int, ...], lengths: Iterable[int]) -> Plan:
        """The plan of most expected tokens per second for len(acceptances) >= 1 drafting sessions.

        others: rows of sessions that do not draft. lengths: those allowed, 0 among them unless the user asked for one.
        A plan that was tried less than TRIALS times goes first, unless it could not win were its rows as cheap as the
        cheapest known; so does one that was not measured for long and could win likewise.
        """
        self.rounds += 1
        plans = [
            Plan(length, overlap)
            for length in lengths
            for overlap in self.overlaps
            if not (length and overlap) or self.overlaps_drafts
        ]
        if len(plans) == 1:
            return plans[0]
        n = len(acceptances)
        cheapest = min((cost.seconds for cost in self.base.values()), default=0.0)
        best, rates, untried = 0.0, dict[Plan, float](), list[tuple[Plan, float]]()
        for plan in plans:
            cost = self.base.get((n * (plan.length + 1) + others, plan.overlap))
            new = cost is None or cost.visits < TRIALS
            seconds = cheapest if cost is None or new else cost.seconds
            rate = self._rate(acceptances, others, who, plan, seconds)
            if new:
                untried.append((plan, rate))
            else:
                rates[plan] = rate
                best = max(best, rate)
        for plan, promise in untried:
            if promise > best:
                return plan
        for plan, rate in rates.items():
            cost = self.base[n * (plan.length + 1) + others, plan.overlap]
            hope = self._rate(acceptances, others, who, plan, max(cheapest, cost.seconds / SPOILED))
            contends = rate >= CONTENDER * best
            if hope > best and self.rounds - cost.seen > (STALE if contends else cost.patience):
                cost.patience *= 1 if contends else 2
                return plan
        return max(rates, key=rates.__getitem__)

    def _rate(
        self, acceptances: Sequence[float], others: int, who: tuple[int, ...], plan: Plan, base_seconds: float
    ) -> float:
        """Expected tokens per second of a plan."""
        step = self.memory.get((who, len(acceptances)))
        step_seconds = step.seconds if step else 0.0
        tokens, all_accepted = float(others), 0.0
        for acceptance in acceptances:
            tokens += expected_tokens(acceptance, plan.length)
            all_accepted = max(all_accepted, acceptance**plan.length)
        steps = plan.length + (0.0 if plan.overlap else all_accepted)
        return tokens / max(base_seconds + steps * step_seconds, 1e-9)
