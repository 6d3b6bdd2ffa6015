"""The engine: a base and its memories, open, with one context each that many sessions share.

Knows nothing of text, HTTP or terminals.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from memdec_edge.engine import registry
from memdec_edge.engine import round as rounds
from memdec_edge.engine.drafting import DraftPolicy
from memdec_edge.engine.registry import Memory, Registry, open_memory
from memdec_edge.engine.session import Sample, Session
from memdec_edge.errors import BusyError, ContextError, OptionError
from memdec_edge.llama.abort import AbortFlag
from memdec_edge.llama.context import Context, default_threads
from memdec_edge.llama.model import Model, has_gpu
from memdec_edge.llama.sampler import Sampler
from memdec_edge.mixture import mixing
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, SamplingOptions, check_range


@dataclass
class Counters:
    """What an engine's rounds did since it was opened, prefill left out; seconds of wall time.

    `drafted` and `accepted` count drafted tokens that were judged; lengths: rounds of one session by drafted tokens.
    `guessed` and `guessed_right`: rounds that drafted nothing, where what would have been drafted was only compared.
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


class Engine:
    """Opens a base GGUF and its memories, proves that they match and owns their KV caches.

    n_ctx: cells, one per token, shared by all sessions. Not for several threads at once; cancel() is.
    Raises MissingFileError, ModelFileError, RoleError, PairingError and OptionError; nothing stays open then.
    """

    def __init__(
        self, base: Path | str, memories: Iterable[MemoryOptions] = (), options: LoadOptions | None = None
    ) -> None:
        self.options = options = options or LoadOptions()
        chosen = list(memories)
        if len(chosen) > mixing.MAX_MEMORIES:
            raise OptionError("--memory", f"given {len(chosen)} times", f"at most {mixing.MAX_MEMORIES} can be mixed")
        self.counters, self.policy = Counters(), DraftPolicy()
        self._abort = AbortFlag()  # one for all contexts: whichever decodes is stopped
        self._sessions: list[Session] = []
        self._idle = list(range(options.n_seq))  # slots, the longest unused first
        self._cell_numbers, self._family_numbers = count(), count()
        with ExitStack() as undo:
            self.base = Model(base, n_gpu_layers=options.n_gpu_layers)
            undo.callback(self.base.close)
            opened = []
            for memory in chosen:
                opened.append(open_memory(self.base, memory.path, options.of_memories()))
                undo.callback(opened[-1][0].close)
            trained = min([self.base.n_ctx_train, *(model.n_ctx_train for model, _ in opened)])
            self.n_ctx = min(options.n_ctx or trained, trained * options.n_seq)
            self.context = Context(self.base, options, self.n_ctx, self._abort, n_seq=options.n_seq)
            undo.callback(self.context.close)
            self.registry = Registry(self.base, options.of_memories(), self.n_ctx, self._abort)
            undo.callback(self.registry.close)
            for memory, (model, warning) in zip(chosen, opened, strict=True):
                self.registry.attach(memory, model, warning)
            undo.pop_all()
        self.worker = ThreadPoolExecutor(1, "memories")  # it has no thread until there is work
        self._divide_threads()

    def _divide_threads(self) -> None:
        self.division = _divide(self.options, self.base.path, [memory.model.path for memory in self.memories])
        self.policy.overlaps = (False,) if self.division is None else (False, True)
        self.policy.overlaps_drafts = self.division == (0, 0)

    @property
    def warnings(self) -> list[str]:
        """For a person: vocabularies that differ harmlessly or are mixed by force, a shorter context, slow kernels."""
        found = [memory.warning for memory in self.memories if memory.warning]
        if self.n_ctx < self.options.n_ctx != LoadOptions.n_ctx:  # the default is for models of any size
            found.append(
                f"the context is {self.n_ctx} tokens, not {self.options.n_ctx}: the models were trained for that"
            )
        if not mixing.implementation().startswith("native"):
            found.append(f"the mixture runs on {mixing.implementation()}, slower than the C extension")
        return found

    @property
    def memories(self) -> list[Memory]:
        """The memories that new sessions mix."""
        return self.registry.memories

    def add(self, options: MemoryOptions) -> Memory:
        """Open one more memory; sessions may mix() it at once. Errors: see Registry.add()."""
        memory = self.registry.add(options)
        self._divide_threads()
        return memory

    def reweight(self, memory: Memory, weight: float | None) -> None:
        """Another lambda for new sessions, see Registry.reweight(). A running one is changed by Session.mix()."""
        self.registry.reweight(memory, weight)

    def remove(self, memory: Memory) -> None:
        """Give new sessions a memory no more; it is closed when none uses it, see Registry.remove()."""
        self.registry.remove(memory)
        self._divide_threads()

    def weights(self, total: float | None = None) -> list[float]:
        """A lambda for each memory; `total` is their sum where given (see weights.mixture_weights)."""
        return registry.weights(self.memories, total)

    def longest(self, memories: Iterable[Memory] | None = None) -> int:
        """Tokens that a session may hold: cells, or fewer where base or `memories` (all) were trained for fewer."""
        models = [memory.model for memory in (self.memories if memories is None else memories)]
        return min([self.n_ctx, self.base.n_ctx_train, *(model.n_ctx_train for model in models)])

    # --- sessions --------------------------------------------------------------------------------------------------

    def session(
        self,
        tokens: Sequence[int] = (),
        sampling: SamplingOptions | None = None,
        generation: GenerationOptions | None = None,
        *,
        total: float | None = None,
        shares: Iterable[tuple[Memory, float]] | None = None,
        limit: int | None = None,
    ) -> Session:
        """A timeline that starts with `tokens` and mixes `shares`, else all memories with weights(total).

        limit: tokens that it may hold, all of them reserved; None: longest(). What the contexts still hold of the start
        of `tokens`, from a session that was closed, is not decoded again. Raises ContextError for tokens or a limit
        beyond what the models can hold, BusyError where no slot or not enough cells are free, OptionError for a limit
        below the number of tokens and for weights and sampling options that cannot be.
        """
        chosen = list(zip(self.memories, self.weights(total), strict=True)) if shares is None else list(shares)
        longest = self.longest(memory for memory, weight in chosen if weight > 0)
        limit = longest if limit is None else limit
        if max(limit, len(tokens)) > longest:
            raise ContextError(len(tokens), max(limit - len(tokens), 0), longest)
        check_range("limit", limit, len(tokens))
        if not self._sessions:
            self._abort.take()  # a cancel() that came too late for the session before
        slot = self._admit(limit, tokens)
        try:
            sampler = Sampler(sampling or SamplingOptions(), self.base.vocab, self.base.n_vocab, limit)
        except BaseException:
            self._idle.append(slot)
            raise
        family = next(self._family_numbers)
        session = self._enter(Session(self, slot, family, sampler, generation or GenerationOptions(), limit))
        try:
            session.extend(tokens)
            session.mix(chosen)  # last, for it keeps what the slot has left of the tokens
        except BaseException:
            session.close()
            raise
        for context in self._contexts():
            context.truncate(context.shared(session.tokens, slot), slot)
        return session

    def fork(self, session: Session, seed: int | None = None) -> Session:
        """See Session.fork()."""
        if seed is not None:
            check_range("--seed", seed, 0, 2**32 - 2)
        session.prefill()  # only what is decoded can be shared
        shared = len(session.tokens) if session.rolls_back else 0  # else a rewind would decode them again, apart
        slot = self._admit(session.limit - shared)
        sampler = session.sampler.fork(seed)
        for context in self._contexts():
            context.truncate(0, slot)  # also those that neither uses: admission counts what sessions hold
        twin = self._enter(Session(self, slot, session.family, sampler, session.generation, session.limit))
        try:
            session.copy_to(twin)
        except BaseException:
            twin.close()
            raise
        return twin

    def _enter(self, session: Session) -> Session:
        self._sessions.append(session)
        return session

    def leave(self, session: Session) -> None:
        """See Session.close()."""
        if not session.closed:
            session.closed = True
            self._sessions.remove(session)
            self._idle.append(session.slot)
            session.sampler.close()
            for memory in session.memories:
                self.registry.release(memory)
            self._make_room()  # a fork's cells were counted once as long as it was open

    def require_idle(self) -> None:
        """For whoever uses the contexts without a session. Raises BusyError while one is open."""
        if self._sessions:
            raise BusyError("slots", self.options.n_seq, len(self._idle), self.options.n_seq)

    def new_cells(self, number: int) -> list[int]:
        """Numbers for tokens that enter a session, so that what forks share is counted once."""
        return [next(self._cell_numbers) for _ in range(number)]

    def own_cells(self, session: Session) -> list[int]:
        """Numbers for its tokens that count as its own: a memory that is new to it reads them for it alone.

        Raises BusyError where it shares more with forks than there are free cells.
        """
        shared = self.shared_cells(session)
        self.require_cells(shared)
        return self.new_cells(len(session.tokens)) if shared else session.cells

    def shared_cells(self, session: Session, start: int = 0) -> int:
        """How many of its cells from token `start` on forks hold too."""
        others = [other.cells for other in self._sessions if other.family == session.family and other is not session]
        return len(set(session.cells[start:]) & set().union(*others)) if others else 0

    def require_cells(self, wanted: int) -> None:
        """Raise BusyError unless so many more cells can be reserved."""
        if wanted and self._reserved() + wanted > self.n_ctx:
            raise BusyError("cells", wanted, self.n_ctx - self._reserved(), self.n_ctx)

    def _admit(self, wanted: int, tokens: Sequence[int] = ()) -> int:
        """The idle slot that holds most of the start of `tokens`, with `wanted` cells free for it. Raises BusyError."""
        if not self._idle:
            raise BusyError("slots", 1, 0, self.options.n_seq)
        self.require_cells(wanted)
        slot = max(self._idle, key=lambda idle: self.context.shared(tokens, idle))
        self._idle.remove(slot)
        self._make_room(wanted)
        return slot

    def _make_room(self, wanted: int = 0) -> None:
        """What closed sessions left may stay as long as nobody may come to need its cells."""
        reserved = self._reserved()
        for idle in self._idle:
            if reserved + wanted + sum(self._held(other) for other in self._idle) <= self.n_ctx:
                break
            for context in self._contexts():
                context.truncate(0, idle)

    def _reserved(self) -> int:
        """Cells that the open sessions have or may come to need."""
        families: dict[int, list[Session]] = {}
        for session in self._sessions:
            families.setdefault(session.family, []).append(session)
        reserved = 0
        for family in families.values():
            reserved += sum(session.limit - len(session.tokens) for session in family)
            reserved += len(set().union(*(session.cells for session in family)))
        return reserved

    def _held(self, slot: int) -> int:
        return max(len(context.tokens[slot]) for context in self._contexts())

    def _contexts(self) -> list[Context]:
        return [self.context, *(memory.context for memory in self.registry.open_memories)]

    # --- work -------------------------------------------------------------------------------------------------------

    def step(self, sessions: Sequence[Session]) -> list[list[Sample]]:
        """One round for all of `sessions`: each emits a token, and more where drafted ones were right.

        A session that has not read its tokens reads them first, by itself, see Session.prefill(); one that is
        finished emits nothing. The last sample of a session that finishes with "stop" is the end-of-generation token.
        Raises Cancelled, DecodeError, NumericsError; all sessions then stand where they stood.
        """
        return rounds.step(self, sessions)

    def cancel(self) -> None:
        """Stop what runs in another thread: its decode, now or next, raises Cancelled."""
        self._abort.set()

    def close(self) -> None:
        """Free samplers, KV caches and models."""
        for session in list(self._sessions):
            session.close()
        self.worker.shutdown()
        self.registry.close()
        self.context.close()
        self.base.close()


def _divide(options: LoadOptions, base: Path, memories: list[Path]) -> tuple[int, int] | None:
    """Threads of base and memories while they decode at the same time, 0 for their usual ones; None: never do so.

    They must not fight for the same units. They do not where one runs on a GPU and the other on the CPU, nor on the CPU
    with --threads and --memory-threads that together are no more than there are CPUs. Without --memory-threads those of
    the base are divided in the ratio of the files, at least one for each. Which way is faster is measured.
    """
    on_gpu = [has_gpu() and some.n_gpu_layers > 0 for some in (options, options.of_memories())]
    if any(on_gpu):
        return None if all(on_gpu) else (0, 0)
    cpus = default_threads()
    threads = options.threads or cpus
    if threads + (options.memory_threads or threads) <= cpus:
        return (0, 0)
    if options.memory_threads or threads < 2:
        return None
    sizes = [path.stat().st_size for path in (base, *memories)]
    lent = min(max(round(threads * sum(sizes[1:]) / sum(sizes)), 1), threads - 1)
    return (threads - lent, lent)
