"""One round: the memories draft, the base evaluates their draft in one pass, the mixture verifies, caches roll back.

    tokens      t0 .. t_last | d1 .. dg         a round drafts g >= 0 tokens
    memories    decode t_last, d1, .. one by one: the row after each gives the next draft and is kept for the mixture
    indexes     or they draft: d1 .. dg is what follows the longest match; the memories decode all of it as one batch
    base        decodes t_last, d1 .. dg in one batch: g + 1 rows
    mixture     row j gives the token after d_j; while it samples what was drafted, the next row follows

A sample is argmax(logit / T + Gumbel(seed, position, id)), and a draft is the same of the memories' row with the same
noise (mixture/sampling.py). So the text does not depend on how much was drafted, and no draw happens twice. The
memories decode the last token of their own draft only when all of it was accepted: the next round starts with it then.
Plain mixing is the round with g = 0. Knows nothing of admission and of what the tokens mean.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import perf_counter

from memdec_edge.engine.blend import Memory
from memdec_edge.engine.cells import exclusive
from memdec_edge.engine.drafting import FOUND_LENGTHS, MAX_ROWS, DraftPolicy, Plan
from memdec_edge.engine.session import Session, read_prompts
from memdec_edge.engine.turn import Turn
from memdec_edge.errors import DecodeError
from memdec_edge.llama.context import Context
from memdec_edge.mixture.rows import Row, Sampled


@dataclass
class Counters:
    """What an engine's rounds did since it was opened, prefill left out; seconds of wall time.

    `drafted` counts verified drafted tokens, `accepted` those that the mixture sampled too; lengths: rounds of one
    session by drafted tokens. `guessed`: rounds that drafted nothing and only compared what would have been drafted;
    `guessed_right`: those in which the mixture sampled it. `matched`: emitted tokens by the class of the longest match
    before them; `matched_right`: those that are its likeliest continuation.
    """

    rounds: int = 0
    emitted: int = 0
    drafted: int = 0
    accepted: int = 0
    guessed: int = 0
    guessed_right: int = 0
    memory_steps: int = 0  # decodes of all memories that take part
    base_seconds: float = 0.0
    memory_seconds: float = 0.0
    sample_seconds: float = 0.0  # drafting's samples, mixing, verifying
    total_seconds: float = 0.0
    lengths: Counter[int] = field(default_factory=Counter)
    matched: Counter[int] = field(default_factory=Counter)
    matched_right: Counter[int] = field(default_factory=Counter)


class Rounds:
    """Runs rounds on a base's context and the memories of the sessions, and learns how much to draft.

    division: threads of base and memories while they decode at the same time, 0 for their usual ones; None: they take
    turns. counters: see Counters; a caller may put new ones in their place.
    """

    def __init__(self, context: Context, lock: AbstractContextManager[bool]) -> None:
        self.context, self.lock = context, lock
        self.policy, self.counters = DraftPolicy(), Counters()
        self.division: tuple[int, int] | None = None
        self.worker = ThreadPoolExecutor(1, "memories")  # it has no thread until there is work

    def divide(self, division: tuple[int, int] | None) -> None:
        """Another division of threads, and with it the ways of decoding that may be tried."""
        self.division = division
        self.policy.overlaps = (False,) if division is None else (False, True)
        self.policy.overlaps_drafts = division == (0, 0)

    @exclusive
    def step(self, sessions: Sequence[Session]) -> list[list[Sampled]]:
        """One round for all of `sessions`, see Engine.step()."""
        self._require_own(sessions)
        turns = {id(session): Turn(session) for session in sessions if not session.finished}
        active = list(turns.values())
        if not active:
            return [[] for _ in sessions]
        read_prompts(dict.fromkeys(turn.session for turn in active))
        begin = perf_counter()
        try:
            plan = self._plan(active)
            self._draft(active)
            self._verify(active, plan.overlap)
            for turn in active:
                self._settle(turn)
        except BaseException:
            for turn in active:
                turn.session.rewind(turn.start)
            raise
        self.counters.rounds += 1
        self.counters.total_seconds += perf_counter() - begin
        for turn in active:
            if turn.error and len(active) == 1:
                raise turn.error
            if turn.error:
                turn.session.fail(turn.error)
        return [turns[id(session)].samples if id(session) in turns else [] for session in sessions]

    @exclusive
    def read(self, most: Mapping[Session, int | None]) -> dict[Session, int]:
        """Pieces of the prompts of several sessions, see Engine.read()."""
        self._require_own(most)
        return read_prompts(most)

    def _require_own(self, sessions: Iterable[Session]) -> None:
        if any(session.context is not self.context for session in sessions):
            raise DecodeError("a session of another engine; read and step it there")

    def _plan(self, turns: list[Turn]) -> Plan:
        """Set how much each turn drafts: what its user asked for, else one length for all others, by measurement."""
        drafting = [turn for turn in turns if turn.session.memories or turn.session.indexes]
        if not drafting:
            return Plan(0)
        most = self.context.n_batch // len(turns) - 1
        measured = [turn for turn in drafting if turn.session.generation.draft is None and turn.room]
        for turn in drafting:
            asked = turn.session.generation.draft or 0
            turn.length = 0 if turn in measured else min(asked, turn.room, most)
            turn.promise = self._promise(turn) if turn.length or turn in measured else ()
            turn.by_index = turn.length > 0 and self._prefers_index(turn)
        chosen = measured or drafting
        who = tuple(memory.number for memory in _memories_of(chosen))
        acceptances = [turn.session.acceptance.value if turn.session.memories else None for turn in chosen]
        others = sum(1 + turn.length for turn in turns if turn not in chosen)
        if not measured:
            longest = max(turn.length for turn in drafting)
            if not who or any(turn.by_index for turn in drafting):
                return Plan(longest)
            return self.policy.choose(acceptances, others, who, range(longest, longest + 1))
        rows = min((MAX_ROWS - others) // len(measured) - 1, most, *(turn.room for turn in measured))
        lengths = range(max(rows, 0) + 1 if who else 1)
        room = min(most, *(turn.room for turn in measured))
        promises = [turn.promise for turn in measured]
        found = [length for length in FOUND_LENGTHS if length <= room] if any(promises) else []
        plan = self.policy.choose(acceptances, others, who, lengths, promises, found)
        for turn in measured:
            turn.length = plan.drafted(turn.session.acceptance.value if turn.session.memories else None, turn.promise)
            turn.by_index = plan.found
            turn.guesses = plan.length == 0 and len(lengths) > 1 and bool(turn.session.memories)
        return plan

    def _promise(self, turn: Turn) -> list[float]:
        """The acceptances of what the indexes would draft now."""
        session = turn.session
        if not session.indexes or not turn.room:
            return []
        matches = session.lookup.matches(session.tokens, turn.start)
        return self.policy.promise(max(match.length for match in matches), turn.room)

    def _prefers_index(self, turn: Turn) -> bool:
        """Whether the indexes are to draft as many tokens as the user asked for."""
        session = turn.session
        if not session.indexes:
            return False
        return not session.memories or bool(turn.promise and turn.promise[0] >= session.acceptance.value)

    def _draft(self, turns: list[Turn]) -> None:
        """Let the indexes draft, and the memories run ahead, all sessions side by side."""
        begin = perf_counter()
        for turn in turns:
            if turn.by_index:
                turn.draft_by_index()
        self.counters.sample_seconds += perf_counter() - begin
        while drafting := [turn for turn in turns if len(turn.draft) < turn.length]:
            self._memory_step(drafting)
            begin = perf_counter()
            for turn in drafting:
                token = turn.draft_next()
                if token is not None:
                    turn.draft.append(token)
                if token is None or token in turn.session.base.eog_tokens:
                    turn.length = len(turn.draft)
            self.counters.sample_seconds += perf_counter() - begin

    def _memory_step(self, turns: list[Turn], *, threads: int = 0, timed: bool = True) -> None:
        """Let the memories read each turn's tokens and keep the rows; threads: see Context.use_threads()."""
        begin, memories = perf_counter(), _memories_of(turns)
        unread = {id(turn): turn.unread for turn in turns}
        for memory in memories:
            users = [turn for turn in turns if memory in turn.session.memories]
            memory.context.use_threads(threads)
            memory.context.decode([(turn.session.slot, unread[id(turn)]) for turn in users])
            n_rows = sum(len(unread[id(turn)]) for turn in users)
            rows, first = memory.context.rows(0, n_rows), 0
            for turn in users:
                count = len(unread[id(turn)])
                turn.session.drafted[memory][turn.rows : turn.rows + count] = rows[first : first + count]
                first += count
        for turn in turns:
            turn.rows += len(unread[id(turn)])
        self.counters.memory_steps += 1
        if timed:
            seconds = perf_counter() - begin
            self.counters.memory_seconds += seconds
            n_rows = sum(map(len, unread.values()))
            self.policy.add_memory(tuple(memory.number for memory in memories), n_rows, seconds)

    def _verify(self, turns: list[Turn], overlap: bool) -> None:
        """Evaluate the base on all drafts, beside the memories' last step if `overlap`, and let the mixture sample."""
        mixing = [turn for turn in turns if turn.session.memories]
        for turn in turns:
            turn.look_up()
        rows = self._base_pass(turns, mixing if overlap else [])
        begin, first = perf_counter(), 0
        for turn in turns:
            turn.base_rows = rows[first : first + len(turn.draft) + 1]
            first += len(turn.draft) + 1
            ready = turn.rows if turn.session.memories else len(turn.draft) + 1
            if ready:
                turn.guess = turn.draft_next() if turn.guesses else None
                turn.verify(ready)
        self.counters.sample_seconds += perf_counter() - begin
        unread = [turn for turn in mixing if not turn.over]
        if unread:
            self._memory_step(unread)
            begin = perf_counter()
            for turn in unread:
                turn.guess = turn.draft_next() if turn.guesses else None
                turn.verify(len(turn.draft) + 1)
            self.counters.sample_seconds += perf_counter() - begin

    def _base_pass(self, turns: list[Turn], beside: list[Turn]) -> Row:
        """Logits of the base after the last token of each turn and after each of its drafted tokens, in order.

        The memories' next step of the turns in `beside` runs at the same time.
        """
        running: Future[None] | None = None
        begin = perf_counter()
        try:
            base_threads, memory_threads = (beside and self.division) or (0, 0)
            self.context.use_threads(base_threads)
            if beside:
                running = self.worker.submit(self._memory_step, beside, threads=memory_threads, timed=False)
            self.context.decode([(turn.session.slot, (turn.session.tokens[-1], *turn.draft)) for turn in turns])
            n_rows = sum(len(turn.draft) + 1 for turn in turns)
            rows = self.context.rows(0, n_rows)
        finally:
            if running:
                _wait_for(running)
        if running:
            running.result()
        seconds = perf_counter() - begin
        self.counters.base_seconds += seconds
        self.policy.add_base(n_rows, bool(beside), seconds, any(turn.by_index for turn in turns))
        return rows

    def _settle(self, turn: Turn) -> None:
        """Roll the caches back to what was emitted, and learn how good the draft was; a turn that failed goes back."""
        session, counters = turn.session, self.counters
        if turn.error:
            session.rewind(turn.start)
            turn.samples = []
            return
        keep = len(session.tokens) - (session.finished != "stop")
        for context in session.contexts:
            if len(context.tokens[session.slot]) > keep:
                context.truncate(keep, session.slot)
        session.lookup.rewind(min(turn.start + turn.accepted, len(session.tokens)))  # an accepted end is no part of it
        counters.emitted += len(turn.samples)
        if not session.memories and not session.indexes:
            return
        rejected = turn.accepted < len(turn.draft)
        counters.lengths[len(turn.draft)] += 1
        counters.drafted += turn.accepted + rejected
        counters.accepted += turn.accepted
        session.n_drafted += turn.accepted + rejected
        session.n_accepted += turn.accepted
        guessed_right = turn.guess == turn.samples[0].token
        counters.guessed += turn.guess is not None
        counters.guessed_right += guessed_right
        hits = turn.accepted + guessed_right
        misses = rejected or (turn.guess is not None and not hits)
        if session.memories and not turn.by_index:
            for acceptance in (session.acceptance, self.policy.acceptance):
                acceptance.add(hits, misses)
        for found, sample in zip(turn.found, turn.samples, strict=False):
            longest = max(found, key=lambda one: one.klass)
            if longest.klass:
                right = sample.token == longest.likeliest
                self.policy.add_found(longest.klass, right)
                counters.matched[longest.klass] += 1
                counters.matched_right[longest.klass] += right


def _memories_of(turns: list[Turn]) -> list[Memory]:
    """Every memory that the sessions mix, once, the oldest first."""
    if len(turns) == 1:
        return list(turns[0].session.memories)
    found = dict.fromkeys(memory for turn in turns for memory in turn.session.memories)
    return sorted(found, key=lambda memory: memory.number)


def _wait_for(running: "Future[None]") -> None:
    """Wait for the memories, whatever Ctrl-C says: their caches must not roll back while they decode."""
    interrupt: BaseException | None = None
    while not running.done():
        try:
            wait([running])
        except BaseException as error:
            interrupt = error
    if interrupt:
        raise interrupt
