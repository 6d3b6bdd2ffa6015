"""The engine: a base and its memories, open, with one context each that many sessions share.

Threads may share an engine: each call waits until the call of another thread ends. Knows nothing of text, HTTP or
terminals.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from memdec_edge.engine.blend import Index, Memory, MemoryMixture, Voice, require_single, resolve
from memdec_edge.engine.cells import Cells, Holding, exclusive
from memdec_edge.engine.drafting import DraftPolicy
from memdec_edge.engine.registry import Registry
from memdec_edge.engine.round import Counters, Rounds
from memdec_edge.engine.session import Session
from memdec_edge.errors import ContextError, OptionError
from memdec_edge.gguf import parts
from memdec_edge.llama.abort import AbortFlag
from memdec_edge.llama.context import Context, default_threads
from memdec_edge.llama.library import has_gpu
from memdec_edge.llama.model import Model
from memdec_edge.llama.sampler import Sampler
from memdec_edge.mixture.mixing import implementation
from memdec_edge.mixture.rows import MAX_MEMORIES, Sampled
from memdec_edge.options import (
    GenerationOptions,
    LoadOptions,
    MemoryOptions,
    MixtureOptions,
    SamplingOptions,
    check_range,
)


class Engine:
    """Opens a base GGUF, its memories and indexes, proves that they match and owns the KV caches.

    n_ctx: cells, one per token, shared by all sessions. Raises MissingFileError, ModelFileError, RoleError,
    PairingError and OptionError; nothing stays open then.
    """

    def __init__(
        self, base: Path | str, memories: Iterable[MemoryOptions] = (), options: LoadOptions | None = None
    ) -> None:
        self.options = options = options or LoadOptions()
        chosen = list(memories)
        if len(chosen) > MAX_MEMORIES:
            raise OptionError("memory", f"given {len(chosen)} times", f"at most {MAX_MEMORIES} can be mixed")
        self._abort = AbortFlag()  # one for all contexts: whichever decodes is stopped
        self._sessions: list[Session] = []
        with ExitStack() as undo:
            self.base = Model(base, n_gpu_layers=options.n_gpu_layers)
            undo.callback(self.base.close)
            trained = self.base.n_ctx_train
            self.n_ctx = min(options.n_ctx or trained, trained * options.n_seq)
            self.context = Context(self.base, options, self.n_ctx, self._abort, n_seq=options.n_seq)
            undo.callback(self.context.close)
            self.registry = Registry(self.base, options.of_memories(), self.n_ctx, self._abort)
            undo.callback(self.registry.close)
            for memory in chosen:
                self.registry.add(memory)
            undo.pop_all()
        self.cells = Cells(self.n_ctx, options.n_seq, self._contexts)
        self.rounds = Rounds(self.context, self.cells.lock)
        self._divide_threads()

    @property
    def lock(self) -> AbstractContextManager[bool]:
        """Of the contexts."""
        return self.cells.lock

    @property
    def counters(self) -> Counters:
        """What the rounds did so far."""
        return self.rounds.counters

    @property
    def policy(self) -> DraftPolicy:
        """What the rounds learned of costs and acceptance."""
        return self.rounds.policy

    @property
    def warnings(self) -> list[str]:
        """For a person: vocabularies that differ harmlessly or are mixed by force, shorter contexts, slow kernels."""
        found = [memory.warning for memory in self.memories if memory.warning]
        if self.n_ctx < self.options.n_ctx != LoadOptions.n_ctx:  # the default is for models of any size
            found.append(f"the context is {self.n_ctx} tokens, not {self.options.n_ctx}: the base was trained for that")
        usual = min(self.n_ctx, self.base.n_ctx_train)
        found += [
            f"{memory.model.path} was trained for {memory.model.n_ctx_train} tokens: a session that mixes it holds at "
            f"most that, not {usual}"
            for memory in self.memories
            if memory.model.n_ctx_train < usual
        ]
        if not self.mixes_with.startswith("native"):
            found.append(f"the mixture runs on {self.mixes_with}, slower than the C extension")
        return found

    @property
    def mixes_with(self) -> str:
        """What computes the mixture, see mixing.implementation()."""
        return implementation()

    @property
    def memories(self) -> list[Memory]:
        """The memories that new sessions mix."""
        return self.registry.memories

    @property
    def indexes(self) -> list[Index]:
        """The indexes that new sessions mix."""
        return self.registry.indexes

    @exclusive
    def add(self, options: MemoryOptions) -> Voice:
        """Open one more memory or index; sessions may mix() it at once. Errors: see Registry.add()."""
        memory = self.registry.add(options)
        self._divide_threads()
        return memory

    def open(self, options: MemoryOptions) -> Voice:
        """The first part of add(), while sessions may step; attach() is the second. See Registry.open()."""
        return self.registry.open(options)

    @exclusive
    def attach(self, voice: Voice) -> None:
        """Let sessions mix() what open() gave; after an error it is the caller's to close. See Registry.attach()."""
        self.registry.attach(voice)
        self._divide_threads()

    @exclusive
    def reweight(self, memory: Voice, weight: float | None) -> None:
        """Another lambda for new sessions, see Registry.reweight(). Session.mix() changes a running one."""
        self.registry.reweight(memory, weight)

    @exclusive
    def remove(self, memory: Voice) -> None:
        """Give new sessions a memory or an index no more; it closes when no session uses it, see Registry.remove()."""
        self.registry.remove(memory)
        self._divide_threads()

    def mixture(self, options: MixtureOptions | None = None, voices: Sequence[Voice] | None = None) -> MemoryMixture:
        """`voices` (all memories and indexes) with their weights, which learn unless `options` is None or fixes them.

        See blend.resolve(). Raises OptionError for a voice given twice, and for a total that cannot be (see
        weights.mixture_weights).
        """
        if voices is None:
            return resolve(self.memories, self.indexes, options)
        require_single(voices)
        memories = [voice for voice in voices if isinstance(voice, Memory)]
        return resolve(memories, [voice for voice in voices if isinstance(voice, Index)], options)

    def longest(self, memories: Iterable[Memory] | None = None) -> int:
        """Tokens that a session may hold: cells, or fewer where base or `memories` (all) were trained for fewer."""
        models = [memory.model for memory in (self.memories if memories is None else memories)]
        return min([self.n_ctx, self.base.n_ctx_train, *(model.n_ctx_train for model in models)])

    def require_room(
        self, n_tokens: int, n_new: int, n_sessions: int = 1, memories: Iterable[Memory] | None = None
    ) -> None:
        """Raise ContextError unless `n_sessions` can each add `n_new` tokens to `n_tokens` that they share.

        Forks of contexts that cannot roll back store even those apart.
        """
        longest = self.longest(memories)
        if n_tokens + n_new > longest:
            raise ContextError(n_tokens, n_new, longest)
        if n_new > self.room(n_tokens, n_sessions, memories):
            raise ContextError(n_tokens, n_sessions * n_new, self.n_ctx)

    def room(self, n_tokens: int, n_sessions: int = 1, memories: Iterable[Memory] | None = None) -> int:
        """New tokens for which each of `n_sessions` finds cells after `n_tokens` that they share; below 0: none."""
        mixed = self.memories if memories is None else list(memories)
        if all(context.can_roll_back for context in (self.context, *(memory.context for memory in mixed))):
            return (self.n_ctx - n_tokens) // n_sessions
        return self.n_ctx // n_sessions - n_tokens

    def find(self, path: Path | str) -> Voice | None:
        """The memory or index of that file, however its path is spelled; None where it is not open."""
        wanted = Path(path)
        voices: list[Voice] = [*self.memories, *self.indexes]
        return next((voice for voice in voices if voice.path == wanted or _same_file(voice.path, wanted)), None)

    def check(self, sampling: SamplingOptions) -> None:
        """Raise OptionError for sampling options that cannot be followed, as session() would; takes no slot."""
        Sampler(sampling, self.base, self.base.n_vocab, 1).close()

    # --- sessions ---------------------------------------------------------------------------------------------------

    @exclusive
    def session(
        self,
        tokens: Sequence[int] = (),
        sampling: SamplingOptions | None = None,
        generation: GenerationOptions | None = None,
        *,
        mixture: MemoryMixture | None = None,
        limit: int | None = None,
        rates: Sequence[float] | None = None,
    ) -> Session:
        """A timeline that starts with `tokens` and mixes `mixture`, else mixture().

        limit: tokens that it may hold, all of them reserved, see Session.grow(); None: longest(). rates: how much each
        of `tokens` counts for the weights, see Session.extend(); None: all of them fully. What the contexts hold of the
        start of `tokens`, from a session that was closed or is open, is not decoded again. Raises ContextError for
        tokens or a limit beyond what the models can hold, BusyError where no slot or not enough cells are free,
        OptionError for a limit below the number of tokens and for sampling options that cannot be.
        """
        mixture = mixture or self.mixture()
        longest = self.longest(mixture.running().memories)
        limit = longest if limit is None else limit
        if max(limit, len(tokens)) > longest:
            raise ContextError(len(tokens), max(limit - len(tokens), 0), longest)
        check_range("limit", limit, len(tokens))
        if not self.cells.holdings:
            self._abort.take()  # a cancel() that came too late for the session before
        holding = self.cells.admit(limit, tokens)
        try:
            sampler = Sampler(sampling or SamplingOptions(), self.base, self.base.n_vocab, longest)
        except BaseException:
            self.cells.release(holding)
            raise
        session = self._enter(holding, sampler, generation or GenerationOptions(), self.policy.acceptance.value)
        try:
            session.extend(tokens, 1.0 if rates is None else rates)
            session.mix(mixture)  # last, for it keeps what the slot has left of the tokens
        except BaseException:
            session.close()
            raise
        self.cells.keep(holding.slot, session.tokens)
        if lender := self._lender(session):
            session.borrow(lender)
        return session

    @exclusive
    def fork(self, session: Session, seed: int | None = None) -> Session:
        """A second session that goes on from where `session` stands; what both hold is stored once.

        It makes the same draws unless given another `seed`, 0 to 2^32 - 2. What `session` has not read is read first.
        Raises BusyError where no slot or too few cells are free, OptionError for the seed, and as Session.prefill().
        """
        if seed is not None:
            check_range("seed", seed, 0, 2**32 - 2)
        session.prefill()  # only what is decoded can be shared
        shared = len(session.tokens) if session.rolls_back else 0  # else a rewind would decode them again, apart
        holding = self.cells.admit(session.limit, fork_of=session.holding, shared=shared)
        sampler = session.sampler.fork(seed)
        self.cells.keep(holding.slot, ())
        twin = self._enter(holding, sampler, session.generation, session.acceptance.value)
        try:
            session.copy_to(twin)
        except BaseException:
            twin.close()
            raise
        return twin

    def _lender(self, session: Session) -> Session | None:
        """The other session at work that holds most of the beginning of `session`."""
        others = [one for one in self._sessions if one is not session and not one.closed and not one.suspended]
        shared = self.context.shared
        return max(others, key=lambda one: shared(session.tokens, one.slot), default=None)

    def _enter(self, holding: Holding, sampler: Sampler, generation: GenerationOptions, acceptance: float) -> Session:
        session = Session(self.base, self.context, self.cells, self.registry, holding, sampler, generation, acceptance)
        self._sessions = [other for other in self._sessions if not other.closed]
        self._sessions.append(session)
        return session

    def _contexts(self) -> list[Context]:
        return [self.context, *(memory.context for memory in self.registry.open_memories)]

    # --- work -------------------------------------------------------------------------------------------------------

    def step(self, sessions: Sequence[Session]) -> list[list[Sampled]]:
        """One round for all of `sessions`: each emits a token, and more where drafted ones were accepted.

        Sessions that have not read their tokens read them first, as read() does; one that is finished emits nothing.
        The last sample of a session that finishes with "stop" is the end-of-generation token.

        Raises Cancelled and DecodeError; all sessions then stand where they stood. An error of one session among
        several, such as a grammar without a way on or a row with NaN, ends that session alone, which keeps it in
        `error`; the only one at work raises its NumericsError and stands where it stood.
        """
        return self.rounds.step(sessions)

    def read(self, most: Mapping[Session, int | None]) -> dict[Session, int]:
        """Session.prefill() of several sessions at once: their pieces share the batches of each model.

        most: tokens that each may read, None: all but its last; returned: how many are left of each. Raises Cancelled,
        and DecodeError and NumericsError whichever session is the cause. Called again, for all or one, it goes on.
        """
        return self.rounds.read(most)

    def cancel(self) -> None:
        """Stop what runs in another thread: its decode, now or next, raises Cancelled."""
        self._abort.set()

    @exclusive
    def close(self) -> None:
        """Free samplers, KV caches and models."""
        for session in self._sessions:
            session.close()
        self.rounds.worker.shutdown()
        self.registry.close()
        self.context.close()
        self.base.close()

    def _divide_threads(self) -> None:
        paths = [memory.model.path for memory in self.memories]
        self.rounds.divide(_divide(self.options, self.base.path, paths))


def _same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one of them is gone
        return False


def _divide(options: LoadOptions, base: Path, memories: list[Path]) -> tuple[int, int] | None:
    """Threads of base and memories while they decode at the same time, 0 for their usual ones; None: take turns.

    The two must not fight for the same units. They do not where one runs on a GPU and the other on the CPU, nor where
    `threads` and `memory_threads` together are no more than the CPUs. Without `memory_threads` the base's threads are
    divided in the ratio of the files, at least one for each. Measurement decides which way is faster.
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
    sizes = [parts.n_bytes(path) for path in (base, *memories)]
    lent = min(max(round(threads * sum(sizes[1:]) / sum(sizes)), 1), threads - 1)
    return (threads - lent, lent)
