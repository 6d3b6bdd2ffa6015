"""One timeline of an engine: its tokens, the memories that it mixes, its sampler, its holding of slots and cells.

Between calls the contexts hold a prefix of the tokens, as a rule all but the last: the next round decodes that one, at
the head of its rows. A session may reserve more cells as it grows, give all of them to others for a while, and take its
beginning from a session that has the same. Knows nothing of how a round drafts and verifies.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np

from memdec_edge.engine.blend import Index, Memory, MemoryMixture
from memdec_edge.engine.cells import Cells, Holding, exclusive
from memdec_edge.engine.drafting import Acceptance
from memdec_edge.engine.lookup import Lookup
from memdec_edge.engine.reading import Piece, Reader, read
from memdec_edge.engine.registry import Registry
from memdec_edge.engine.weighing import Heard, Weighing
from memdec_edge.errors import ContextError, DecodeError, MemdecError, OptionError
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.llama.sampler import Sampler
from memdec_edge.mixture.mixing import mix
from memdec_edge.mixture.rows import Row, RowStats, Sampled
from memdec_edge.mixture.weights import Mixture
from memdec_edge.options import MAX_DRAFT, GenerationOptions


class Session:
    """Engine.session() and Engine.fork() make sessions; close them, or their slots and cells stay taken.

    tokens: prompt and emitted ids. finished: "stop" after an end-of-generation token was sampled (it is no part of
    `tokens`), "length" at the limit, "error" after an error of this session alone, which `error` then holds; else None.
    memories, indexes: those that run, with a weight above 0 each. weighing: their weights along `tokens`. stats: of
    each row of the last mixture, the base's first.
    """

    def __init__(
        self,
        base: Model,
        context: Context,
        cells: Cells,
        registry: Registry,
        holding: Holding,
        sampler: Sampler,
        generation: GenerationOptions,
        acceptance: float,
    ) -> None:
        self.base, self.context, self.cells, self.registry = base, context, cells, registry
        self.holding, self.sampler, self.generation = holding, sampler, generation
        self._admitted = holding.limit  # memories of a short context may lower it meanwhile
        self.closed = self.suspended = False
        self.tokens: list[int] = []
        self.finished: Literal["stop", "length", "error"] | None = None
        self.error: MemdecError | None = None
        self.stats: list[RowStats] = []
        self.memories: tuple[Memory, ...] = ()
        self.lookup = Lookup()  # of the indexes
        self.weighing = Weighing()
        self._chosen = MemoryMixture.of(())
        self._readers: list[Reader] = []  # of base and memories
        self.acceptance = Acceptance(acceptance)
        self.row: Row = np.empty(base.n_vocab, np.float32)  # the last mixture
        self.drafted: dict[Memory, Row] = {}  # rows of the round at hand, [MAX_DRAFT + 1, n_vocab of the memory]
        self.suppressed = np.empty(0, np.int32)
        self.n_drafted = self.n_accepted = 0  # drafted tokens that the mixture verified, and that it accepted
        self._emitted: list[int] = []  # positions of sampled tokens

    @property
    def lock(self) -> AbstractContextManager[bool]:
        """Of the engine's contexts."""
        return self.cells.lock

    @property
    def indexes(self) -> tuple[Index, ...]:
        """Those that run."""
        return self.lookup.indexes

    @property
    def mixture(self) -> Mixture:
        """Weights and temperatures at the end of the tokens."""
        return self.weighing.mixture

    @property
    def slot(self) -> int:
        """Its place in the contexts."""
        return self.holding.slot

    @property
    def limit(self) -> int:
        """Tokens that the session may hold: as reserved, or what its memories were trained for if that is less."""
        return self.holding.limit

    @property
    def contexts(self) -> list[Context]:
        """The contexts that this session uses, the base's first. Raises DecodeError after close()."""
        self._require_open()
        return [self.context, *(memory.context for memory in self.memories)]

    @property
    def n_cached(self) -> int:
        """How many of its tokens all of its contexts hold already."""
        return min(len(context.tokens[self.slot]) for context in self.contexts)

    def _require_open(self) -> None:
        if self.closed:
            raise DecodeError("the session is closed, and its place in the contexts belongs to others; open another")
        if self.suspended:
            raise DecodeError("the session is suspended, and its place in the contexts belongs to others; resume it")

    @property
    def rolls_back(self) -> bool:
        """Whether the contexts can go back a few tokens, so that drafting pays and forks keep sharing cells."""
        return all(context.can_roll_back for context in self.contexts)

    @exclusive
    def mix(self, chosen: MemoryMixture) -> None:
        """Choose memories and their weights from here on; memories of weight 0 do not run.

        The next step lets a memory that is new to the session read the tokens so far. Raises OptionError for a memory
        that is closed, ContextError where a memory was trained for fewer tokens than the session holds, DecodeError for
        tokens that a memory lacks, and BusyError where a new memory finds no cells for tokens that forks share.
        """
        self._require_open()
        chosen = chosen.running()
        shortest = _shortest(self._admitted, chosen.memories)
        if shortest < len(self.tokens):
            raise ContextError(len(self.tokens), 0, shortest)
        for memory in chosen.memories:
            if memory not in self.registry.open_memories:
                raise OptionError("memory", memory.model.path, "it was removed; add it again")
            self._check_ids(self.tokens, memory.model.n_vocab)
        for index in chosen.indexes:
            if index not in self.registry.open_indexes:
                raise OptionError("memory", index.path, "it was removed; add it again")
        fresh = [memory for memory in chosen.memories if memory not in self.memories]
        if fresh:
            self.cells.disown(self.holding)
        for memory in fresh:
            memory.context.truncate(memory.context.shared(self.tokens, self.slot), self.slot)
        for voice in chosen.voices:
            self.registry.hold(voice)
        for voice in self._chosen.voices:
            self.registry.release(voice)
        self.lookup = Lookup(chosen.indexes)
        self.memories, self._chosen = chosen.memories, chosen
        self.weighing.begin(chosen)
        temperatures = (1.0, *chosen.mixture.temperatures)
        self._readers = [
            Reader(context, self.base.n_vocab, temperature)
            for context, temperature in zip(self.contexts, temperatures, strict=True)
        ]
        self.holding.limit = shortest
        self._find_length()
        self.drafted = {
            memory: self.drafted.get(memory, np.empty((MAX_DRAFT + 1, memory.model.n_vocab), np.float32))
            for memory in chosen.memories
        }
        suppressed = set(self.unknown_tokens)
        if self.generation.ignore_eos:
            suppressed |= self.base.eog_tokens
        self.suppressed = np.array(sorted(suppressed), np.int32)

    @property
    def unknown_tokens(self) -> range:
        """Ids of the base, padding as a rule, that some memory cannot read: the mixture never samples them."""
        n_vocab = self.base.n_vocab
        return range(min([n_vocab, *(memory.model.n_vocab for memory in self.memories)]), n_vocab)

    @exclusive
    def extend(self, tokens: Sequence[int], rate: float | Sequence[float] = 1.0) -> None:
        """Append tokens of a prompt.

        rate: how much they count for the weights, together or each by itself, from 0, for text that is no evidence such
        as a template's, to 1.
        Raises ContextError beyond the limit, DecodeError for ids that are no tokens.
        """
        self._require_open()
        if len(self.tokens) + len(tokens) > self.limit:
            raise ContextError(len(self.tokens) + len(tokens), 0, self.limit)
        self._check_ids(tokens, self.unknown_tokens.start)
        self.tokens.extend(tokens)
        self.weighing.extend(len(tokens), rate)
        self.cells.extend(self.holding, len(tokens))
        self.finished = "length" if len(self.tokens) == self.limit else None

    # --- cells ------------------------------------------------------------------------------------------------------

    @exclusive
    def grow(self, limit: int) -> None:
        """Reserve cells for `limit` tokens, so that a session that is finished by its length goes on.

        Raises BusyError, which changes nothing, where too few cells are free.
        """
        self._require_open()
        self.cells.grow(self.holding, _shortest(limit, self.memories))
        self._admitted = limit
        self._find_length()

    @exclusive
    def suspend(self) -> None:
        """Give slot and cells to others, and keep text, weights and sampler; resume() goes on with the same draws."""
        self._require_open()
        self.cells.release(self.holding)
        self.suspended = True

    @exclusive
    def resume(self, limit: int) -> None:
        """Take a slot, and cells for `limit` tokens, after suspend(). The next step reads again what is not there.

        Raises BusyError, which changes nothing, where no slot or too few cells are free.
        """
        holding = self.cells.admit(_shortest(limit, self.memories), self.tokens)
        self.cells.extend(holding, len(self.tokens))
        self.cells.keep(holding.slot, self.tokens)
        self.holding, self._admitted, self.suspended = holding, limit, False
        self._find_length()

    def borrow(self, lender: "Session") -> None:
        """Take the beginning that another session holds already, where that is more than the slot has of it.

        Both store it once. It does not reach the last token, nor evidence that the lender has not read as such.
        """
        contexts = self.contexts
        common = min(context.shared(self.tokens, lender.slot) for context in contexts)
        common = min(common, len(self.tokens) - 1)
        if common <= self.n_cached or not self.rolls_back:
            return
        self.cells.keep(self.slot, ())
        for context in contexts:
            context.copy(lender.slot, self.slot, common)
        self.cells.share(self.holding, lender.holding, len(self.tokens) - 1 - self.n_unread)

    def _find_length(self) -> None:
        """Finish by length at the limit, and go on below it."""
        if self.finished in (None, "length"):
            self.finished = "length" if len(self.tokens) == self.limit else None

    def _check_ids(self, tokens: Sequence[int], n_vocab: int) -> None:
        for token in tokens:
            if not 0 <= token < n_vocab:
                raise DecodeError(f"token {token} is outside the vocabulary of {n_vocab} tokens")

    def emit(self, sample: Sampled, after: Mixture) -> None:
        """Append a sampled token, of which a sampler with a state knows already; `after` mixes the next one."""
        for context, log_prob in zip(self.contexts, sample.log_probs, strict=False):  # indexes have none
            context.note(self.slot, len(self.tokens), sample.token, log_prob)
        self._emitted.append(len(self.tokens))
        self.tokens.append(sample.token)
        self.weighing.emit(after)
        self.cells.extend(self.holding, 1)
        if len(self.tokens) == self.limit:
            self.finished = "length"

    def fail(self, error: MemdecError) -> None:
        """End the session with an error of its own; the batch that it was part of goes on."""
        self.finished, self.error = "error", error

    @exclusive
    def prefill(self, most: int | None = None) -> int:
        """Decode all tokens but the last, or only the next `most` of them; return how many are left.

        A step does that first. A caller that serves several sessions reads their prompts in pieces, between the steps
        of others: see Engine.read(). Where the weights learn, they do so at the end, from the last tokens of the
        prompt. Raises Cancelled, DecodeError and NumericsError; called again, it goes on.
        """
        return read_prompts({self: most})[self]

    @property
    def n_unread(self) -> int:
        """How many tokens prefill() has to decode."""
        return len(self.tokens) - 1 - min(piece.begin for piece in self.pieces(None))

    def pieces(self, most: int | None) -> list[Piece]:
        """What each context reads of all tokens but the last, or only of the next `most` of them."""
        if not self.tokens:
            raise DecodeError("the session has nothing to decode; give at least one token")
        self._require_open()
        evidence = [] if self.weighing.is_done else self.weighing.evidence()
        pieces = [reader.piece(self.tokens, self.slot, evidence) for reader in self._readers]
        if most is not None:
            end = min(piece.begin for piece in pieces) + most
            for piece in pieces:
                piece.end = max(min(piece.end, end), piece.begin)
        return pieces

    def weigh(self) -> None:
        """Let the weights learn from the prompt that all contexts have read."""
        self.weighing.learn(self._heard)

    def _heard(self, positions: list[int]) -> Heard:
        """What the voices said of the tokens at these positions: see Weighing.learn()."""
        log_probs = [[reader.log_prob(self.tokens, self.slot, at) for at in positions] for reader in self._readers]
        found = [self.lookup.found(self.tokens, at) for at in positions] if self.indexes else []
        for each in zip(*found, strict=True):
            log_probs.append([one.log_prob(self.tokens[at]) for one, at in zip(each, positions, strict=True)])
        classes = np.array([[one.klass for one in each] for each in zip(*found, strict=True)], np.int32)
        return np.array(log_probs), classes.reshape(len(self.indexes), len(positions))

    @exclusive
    def logits(self) -> Row:
        """The mixed logits after the last token, float32 [n_vocab of the base]; the session's own buffer.

        Raises Cancelled, DecodeError (also without tokens) and NumericsError; the session then stands where it stood.
        """
        base, *memories = [context.feed(self.tokens, self.slot) for context in self.contexts]
        matches = [self.lookup.found(self.tokens, len(self.tokens))] if self.indexes else None
        self.stats = mix(base, memories, self.mixture, self.row, matches)
        return self.row

    @exclusive
    def rewind(self, length: int) -> None:
        """Go back to the first `length` tokens. With nothing else changed, the draws there will be the same again.

        Raises DecodeError for a length that the session does not have, and BusyError where forks share the tokens that
        it gives up and no cells are free for what comes in their place.
        """
        contexts = self.contexts
        if not 0 <= length <= len(self.tokens):
            raise DecodeError(f"a session of {len(self.tokens)} tokens has no first {length}")
        self.cells.require(self.cells.shared(self.holding, length))
        del self.tokens[length:], self.holding.numbers[length:]
        self.weighing.rewind(length)
        self.lookup.rewind(length)
        for context in contexts:
            context.truncate(min(length, len(context.tokens[self.slot])), self.slot)
        self._emitted = [position for position in self._emitted if position < length]
        self.sampler.replay(self.tokens[position] for position in self._emitted)
        self.finished, self.error = "length" if len(self.tokens) == self.limit else None, None

    def copy_to(self, twin: "Session") -> None:
        """Make a new session hold what this one holds. Errors: see mix()."""
        twin.mix(self._chosen)
        for context in self.contexts:
            context.copy(self.slot, twin.slot)
        twin.tokens, twin._emitted = list(self.tokens), list(self._emitted)
        self.weighing.copy_to(twin.weighing)
        if self.rolls_back:
            twin.holding.numbers = list(self.holding.numbers)
        else:
            self.cells.extend(twin.holding, len(self.tokens))
        twin.finished, twin.acceptance = self.finished, Acceptance(self.acceptance.value)

    @exclusive
    def close(self) -> None:
        """Give slot, cells and memories back. The contexts keep the tokens until another session needs the cells."""
        if not self.closed:
            self.closed = True
            self.sampler.close()
            for voice in self._chosen.voices:
                self.registry.release(voice)
            if not self.suspended:
                self.cells.release(self.holding)


def _shortest(limit: int, memories: Iterable[Memory]) -> int:
    """The tokens that a session may hold: `limit`, or what its memories were trained for if that is less."""
    return min([limit, *(memory.model.n_ctx_train for memory in memories)])


def read_prompts(most: Mapping[Session, int | None]) -> dict[Session, int]:
    """Session.prefill() of several sessions of one engine, whose pieces share batches; the caller has their lock."""
    pieces = {session: session.pieces(count) for session, count in most.items()}
    read(piece for each in pieces.values() for piece in each)
    left = {session: len(session.tokens) - 1 - min(piece.end for piece in each) for session, each in pieces.items()}
    for session, count in left.items():
        if not count:
            session.weigh()
    return left
