"""One round: the memories draft, the base evaluates their draft in one pass, the mixture decides, caches roll back.

    tokens      t0 .. t_last | d1 .. dg         a round drafts g >= 0 tokens
    memories    decode t_last, d1, .. one by one: the row after each samples the next draft and is kept for the mixture
    base        decodes t_last, d1 .. dg in one batch: g + 1 rows
    mixture     row j decides on the token after d_j; while it samples what was drafted, the next row decides too

A sample is argmax(logit / T + Gumbel(seed, position, id)) and so is a draft, of the memories' row with the same noise
(sampling.py): what is emitted does not depend on how much was drafted, and no draw is ever repeated. The memories' row
after the last drafted token is decoded only when all of the draft was right, since the next round starts with it then.
Plain mixing is the round with g = 0. Knows nothing of admission and of what the tokens mean.
"""

from collections.abc import Sequence
from concurrent.futures import Future, wait
from time import perf_counter
from typing import TYPE_CHECKING

from memdec_edge.engine.drafting import MAX_ROWS, Plan
from memdec_edge.engine.registry import Memory
from memdec_edge.engine.session import Sample, Session
from memdec_edge.errors import DecodeError, NumericsError
from memdec_edge.mixture import mixing, sampling
from memdec_edge.mixture.mixing import Row
from memdec_edge.options import MAX_DRAFT

if TYPE_CHECKING:
    from memdec_edge.engine.engine import Engine


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
        self.samples: list[Sample] = []
        self.agreed = 0  # drafted tokens that the mixture sampled too
        self.over = False  # a sample differed from the draft, or ended the text

    @property
    def newest(self) -> int:
        """The token that the memories have not seen."""
        return self.draft[-1] if self.draft else self.session.tokens[-1]

    def draft_next(self) -> int | None:
        """What the memories alone sample after their newest row: a draft, or a guess that only measures acceptance.

        None where their row is no distribution: the mixture says so if its text ever comes there.
        """
        s = self.session
        rows = [s.drafted[memory][self.rows - 1] for memory in s.memories]
        sampler = s.sampler
        try:
            return sampling.draft(
                rows, s.weights, s.temperatures, sampler.chain, sampler.seed, self.start + self.rows - 1, s.suppressed,
                s.row, sampler.scratch,
            )  # fmt: skip
        except NumericsError:
            return None

    def decide(self, first: int, end: int) -> None:
        """Let the mixture of rows [first, end) sample, until a sample differs from the draft."""
        s, base_rows, drafted = self.session, self.base_rows[first:end], self.draft[first:end]
        memory_rows = [s.drafted[memory][first:end] for memory in s.memories]
        if s.sampler.stateful:
            samples = self._sample_one_by_one(base_rows, memory_rows, drafted)
        else:
            samples, s.stats = sampling.verify(
                base_rows, memory_rows, s.weights, s.temperatures, s.sampler.chain, s.sampler.seed, self.start + first,
                s.suppressed, drafted, s.row, s.sampler.scratch,
            )  # fmt: skip
        for token, log_prob in samples:
            agrees = len(self.samples) < len(self.draft) and token == self.draft[len(self.samples)]
            self.samples.append(Sample(token, log_prob))
            self.agreed += agrees
            if token in s.engine.base.eog_tokens:
                s.finished, self.over = "stop", True
                return
            s.emit(token)
            self.over = not agrees

    def _sample_one_by_one(self, base_rows: Row, memory_rows: list[Row], drafted: list[int]) -> list[tuple[int, float]]:
        """As sampling.verify(), for samplers whose penalties and grammar follow each token."""
        s, samples = self.session, list[tuple[int, float]]()
        shares = [max(1 - sum(s.weights), 0.0), *s.weights]  # the scale of the mixed row, see mixing.mix
        for index, base_row in enumerate(base_rows):
            s.stats = mixing.mix(base_row, [rows[index] for rows in memory_rows], s.weights, s.temperatures, s.row)
            token = s.sampler.sample(s.row, len(s.tokens) + index, s.suppressed)
            offset = sum(share * stat.logsumexp for share, stat in zip(shares, s.stats, strict=True))
            samples.append((token, float(s.row[token]) - offset))
            if token in s.engine.base.eog_tokens:
                break
            s.sampler.accept(token)
            if index >= len(drafted) or token != drafted[index]:
                break
        return samples


def step(engine: "Engine", sessions: Sequence[Session]) -> list[list[Sample]]:
    """See Engine.step()."""
    if any(session.engine is not engine for session in sessions):
        raise DecodeError("a session of another engine; step it there")
    turns = {id(session): Turn(session) for session in sessions if not session.finished}
    active = list(turns.values())
    if not active:
        return [[] for _ in sessions]
    for turn in active:
        turn.session.prefill()
    begin, counters = perf_counter(), engine.counters
    try:
        plan = _plan(engine, active)
        _draft(engine, active)
        _verify(engine, active, plan.overlap)
        for turn in active:
            _settle(engine, turn)
    except BaseException:
        for turn in active:
            turn.session.rewind(turn.start)
        raise
    counters.rounds += 1
    counters.total_seconds += perf_counter() - begin
    return [turns[id(session)].samples if id(session) in turns else [] for session in sessions]


def _plan(engine: "Engine", turns: list[Turn]) -> Plan:
    """Set how much each turn drafts: what its user asked for, else one length for all others, by measurement."""
    mixing = [turn for turn in turns if turn.session.memories]
    if not mixing:
        return Plan(0)
    most = engine.context.n_batch // len(turns) - 1
    measured = [turn for turn in mixing if turn.session.generation.draft is None and turn.room]
    for turn in mixing:
        turn.length = 0 if turn in measured else min(turn.session.generation.draft or 0, turn.room, most)
    who = tuple(memory.number for memory in _memories_of(measured or mixing))
    acceptances = [turn.session.acceptance.value for turn in measured or mixing]
    others = sum(1 + turn.length for turn in turns if turn not in (measured or mixing))
    if measured:
        rows = min((MAX_ROWS - others) // len(measured) - 1, most, *(turn.room for turn in measured))
        lengths = range(max(rows, 0) + 1)
    else:
        longest = max(turn.length for turn in mixing)
        lengths = range(longest, longest + 1)
    plan = engine.policy.choose(acceptances, others, who, lengths)
    for turn in measured:
        turn.length = plan.length
        turn.guesses = turn.length == 0 and len(lengths) > 1
    return plan


def _memories_of(turns: list[Turn]) -> list[Memory]:
    """Every memory that the sessions mix, once, the oldest first."""
    if len(turns) == 1:
        return turns[0].session.memories
    found = dict.fromkeys(memory for turn in turns for memory in turn.session.memories)
    return sorted(found, key=lambda memory: memory.number)


def _draft(engine: "Engine", turns: list[Turn]) -> None:
    """Let the memories run ahead, all sessions side by side."""
    while drafting := [turn for turn in turns if len(turn.draft) < turn.length]:
        _memory_step(engine, drafting)
        begin = perf_counter()
        for turn in drafting:
            token = turn.draft_next()
            if token is not None:
                turn.draft.append(token)
            if token is None or token in engine.base.eog_tokens:
                turn.length = len(turn.draft)
        engine.counters.sample_seconds += perf_counter() - begin


def _memory_step(engine: "Engine", turns: list[Turn], *, threads: int = 0, timed: bool = True) -> None:
    """Decode each turn's newest token in its memories and keep the rows; threads: see Context.use_threads()."""
    begin, memories = perf_counter(), _memories_of(turns)
    for memory in memories:
        users = [turn for turn in turns if memory in turn.session.memories]
        memory.context.use_threads(threads)
        memory.context.decode([(turn.session.slot, (turn.newest,)) for turn in users])
        for turn, row in zip(users, memory.context.rows(0, len(users)), strict=True):
            turn.session.drafted[memory][turn.rows] = row
    for turn in turns:
        turn.rows += 1
    engine.counters.memory_steps += 1
    if timed:
        seconds = perf_counter() - begin
        engine.counters.memory_seconds += seconds
        engine.policy.add_memory(tuple(memory.number for memory in memories), len(turns), seconds)


def _verify(engine: "Engine", turns: list[Turn], overlap: bool) -> None:
    """Evaluate the base on all drafts at once and let the mixture sample; `overlap`: beside the memories' last step."""
    mixing = [turn for turn in turns if turn.session.memories]
    beside: Future[None] | None = None
    begin = perf_counter()
    try:
        base_threads, memory_threads = (overlap and mixing and engine.division) or (0, 0)
        engine.context.use_threads(base_threads)
        if overlap and mixing:
            beside = engine.worker.submit(_memory_step, engine, mixing, threads=memory_threads, timed=False)
        engine.context.decode([(turn.session.slot, (turn.session.tokens[-1], *turn.draft)) for turn in turns])
        n_rows = sum(len(turn.draft) + 1 for turn in turns)
        rows = engine.context.rows(0, n_rows)
    finally:
        if beside:
            _wait_for(beside)
    if beside:
        beside.result()
    decided = perf_counter()
    engine.counters.base_seconds += decided - begin
    engine.policy.add_base(n_rows, overlap, decided - begin)
    first = 0
    for turn in turns:
        turn.base_rows = rows[first : first + len(turn.draft) + 1]
        first += len(turn.draft) + 1
        ready = turn.rows if turn.session.memories else 1
        if ready:
            turn.guess = turn.draft_next() if turn.guesses else None
            turn.decide(0, ready)
    engine.counters.sample_seconds += perf_counter() - decided
    unread = [turn for turn in mixing if not turn.over]
    if unread:
        _memory_step(engine, unread)
        decided = perf_counter()
        for turn in unread:
            turn.guess = turn.draft_next() if turn.guesses else None
            turn.decide(len(turn.draft), len(turn.draft) + 1)
        engine.counters.sample_seconds += perf_counter() - decided


def _wait_for(beside: "Future[None]") -> None:
    """Wait for the memories, whatever Ctrl-C says: nobody may roll their caches back while they decode."""
    interrupt: BaseException | None = None
    while not beside.done():
        try:
            wait([beside])
        except BaseException as error:
            interrupt = error
    if interrupt:
        raise interrupt


def _settle(engine: "Engine", turn: Turn) -> None:
    """Roll the caches back to what was emitted, and learn how good the draft was."""
    session, counters = turn.session, engine.counters
    keep = len(session.tokens) - (session.finished != "stop")
    for context in session.contexts:
        if len(context.tokens[session.slot]) > keep:
            context.truncate(keep, session.slot)
    counters.emitted += len(turn.samples)
    if not session.memories:
        return
    refused = turn.agreed < len(turn.draft)
    counters.lengths[len(turn.draft)] += 1
    counters.drafted += turn.agreed + refused
    counters.accepted += turn.agreed
    session.n_drafted += turn.agreed + refused
    session.n_accepted += turn.agreed
    guessed_right = turn.guess == turn.samples[0].token
    counters.guessed += turn.guess is not None
    counters.guessed_right += guessed_right
    hits = turn.agreed + guessed_right
    misses = refused or (turn.guess is not None and not hits)
    for acceptance in (session.acceptance, engine.policy.acceptance):
        acceptance.add(hits, misses)
