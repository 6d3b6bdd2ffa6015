"""One timeline of an engine: its tokens, the memories that it mixes, its sampler, its slot in the contexts.

Between calls the contexts hold a prefix of the tokens, as a rule all but the last: that one is decoded with the next
round, whose rows it heads. Knows nothing of other sessions and of how a round drafts and verifies.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from memdec_edge.engine.drafting import Acceptance
from memdec_edge.engine.registry import Memory
from memdec_edge.errors import ContextError, DecodeError, OptionError
from memdec_edge.llama.context import Context
from memdec_edge.llama.sampler import Sampler
from memdec_edge.mixture import mixing
from memdec_edge.mixture.mixing import Row
from memdec_edge.options import MAX_DRAFT, GenerationOptions

if TYPE_CHECKING:
    from memdec_edge.engine.engine import Engine


class Sample(NamedTuple):
    """An emitted token. `log_prob`: nats, under the mixture before penalties and truncation."""

    token: int
    log_prob: float


class Session:
    """Made by Engine.session() or fork(); close it, or its slot and cells stay taken.

    tokens: prompt and emitted ids. limit: how long it may become. finished: "stop" after an end-of-generation token was
    sampled (it is no part of `tokens`), "length" at the limit, else None. stats: maximum, log-normaliser and entropy of
    each row of the last mixture, the base first.
    """

    def __init__(
        self, engine: "Engine", slot: int, family: int, sampler: Sampler, generation: GenerationOptions, limit: int
    ) -> None:
        self.engine, self.slot, self.family = engine, slot, family
        self.sampler, self.generation, self.limit = sampler, generation, limit
        self._admitted = limit  # memories of a short context may lower it meanwhile
        self.closed = False
        self.tokens: list[int] = []
        self.cells: list[int] = []  # one number for each token; forks share those of their common prefix
        self.finished: Literal["stop", "length"] | None = None
        self.stats: list[mixing.RowStats] = []
        self.memories: list[Memory] = []
        self.weights: list[float] = []
        self.temperatures: list[float] = []
        self.acceptance = Acceptance(engine.policy.acceptance.value)
        self.row: Row = np.empty(engine.base.n_vocab, np.float32)  # the last mixture
        self.drafted: dict[Memory, Row] = {}  # rows of the round at hand, [MAX_DRAFT + 1, n_vocab of the memory]
        self.suppressed = np.empty(0, np.int32)
        self.n_drafted = self.n_accepted = 0  # drafted tokens that were judged, and that were right
        self._emitted: list[int] = []  # positions of tokens that the sampler sampled

    @property
    def contexts(self) -> list[Context]:
        """The contexts that this session uses, the base's first. Raises DecodeError after close()."""
        self._require_open()
        return [self.engine.context, *(memory.context for memory in self.memories)]

    def _require_open(self) -> None:
        if self.closed:
            raise DecodeError("the session is closed; its place in the contexts belongs to others")

    @property
    def rolls_back(self) -> bool:
        """Whether the contexts can go back a few tokens, so that drafting pays and forks keep sharing cells."""
        return all(context.can_roll_back for context in self.contexts)

    def mix(self, shares: Iterable[tuple[Memory, float]]) -> None:
        """Choose memories and their lambdas from here on; memories of weight 0 are not run.

        A memory that is new to the session reads the tokens so far with the next step. Raises OptionError for weights
        that are none and for a memory that is closed or given twice, ContextError where a memory's context is shorter
        than what the session holds, DecodeError for tokens that it lacks, and BusyError where tokens that the session
        shares with forks find no cells of their own.
        """
        self._require_open()
        given = list(shares)
        mixing.check_shares([weight for _, weight in given], [])
        chosen = [(memory, weight) for memory, weight in given if weight > 0]
        shortest = min([self._admitted, *(memory.model.n_ctx_train for memory, _ in chosen)])
        if shortest < len(self.tokens):
            raise ContextError(len(self.tokens), 0, shortest)
        for index, (memory, _) in enumerate(chosen):
            if memory not in self.engine.registry.open_memories:
                raise OptionError("the memory", memory.model.path, "it was removed; add it again")
            if memory in [other for other, _ in chosen[:index]]:
                raise OptionError("the memory", memory.model.path, "given twice; add up its weights")
            self._check_ids(self.tokens, memory.model.n_vocab)
        if any(memory not in self.memories for memory, _ in chosen):
            self.cells = self.engine.own_cells(self)
        for memory, _ in chosen:
            if memory not in self.memories:
                memory.context.truncate(memory.context.shared(self.tokens, self.slot), self.slot)
            self.engine.registry.hold(memory)
        for memory in self.memories:
            self.engine.registry.release(memory)
        self.memories = [memory for memory, _ in chosen]
        self.weights = [weight for _, weight in chosen]
        self.temperatures = [memory.facts.temperature for memory in self.memories]
        self.limit = shortest
        if self.finished != "stop":
            self.finished = "length" if len(self.tokens) == shortest else None
        self.drafted = {
            memory: self.drafted[memory]
            if memory in self.drafted
            else np.empty((MAX_DRAFT + 1, memory.model.n_vocab), np.float32)
            for memory in self.memories
        }
        suppressed = set(self.unknown_tokens)
        if self.generation.ignore_eos:
            suppressed |= self.engine.base.eog_tokens
        self.suppressed = np.array(sorted(suppressed), np.int32)

    @property
    def unknown_tokens(self) -> range:
        """Ids of the base, padding as a rule, that some memory could not be fed: not to be sampled."""
        n_vocab = self.engine.base.n_vocab
        return range(min([n_vocab, *(memory.model.n_vocab for memory in self.memories)]), n_vocab)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append a prompt, or what somebody else says. Raises ContextError beyond the limit, DecodeError for no ids."""
        if len(self.tokens) + len(tokens) > self.limit:
            raise ContextError(len(self.tokens) + len(tokens), 0, self.limit)
        self._check_ids(tokens, self.unknown_tokens.start)
        self.tokens.extend(tokens)
        self.cells.extend(self.engine.new_cells(len(tokens)))
        self.finished = "length" if len(self.tokens) == self.limit else None

    def _check_ids(self, tokens: Sequence[int], n_vocab: int) -> None:
        for token in tokens:
            if not 0 <= token < n_vocab:
                raise DecodeError(f"token {token} is outside the vocabulary of {n_vocab} tokens")

    def emit(self, token: int) -> None:
        """Append a token that the sampler sampled and, if it has a state, was told of."""
        self._emitted.append(len(self.tokens))
        self.tokens.append(token)
        self.cells.extend(self.engine.new_cells(1))
        if len(self.tokens) == self.limit:
            self.finished = "length"

    def prefill(self, most: int | None = None) -> int:
        """Decode all tokens but the last, or only the next `most` of them; how many are left.

        A step does that first. Who serves several sessions reads a long prompt in pieces, between the others' steps.
        Raises Cancelled and DecodeError; called again, it goes on.
        """
        if not self.tokens:
            raise DecodeError("the session has nothing to decode; give at least one token")
        wanted = len(self.tokens) - 1
        held = [len(context.tokens[self.slot]) for context in self.contexts]
        end = wanted if most is None else min(wanted, min(held) + most)
        for context, length in zip(self.contexts, held, strict=True):
            if length < end or length > wanted:
                context.prefill(self.tokens[:end], self.slot)
        return wanted - end

    def logits(self) -> Row:
        """The mixed logits after the last token, float32 [n_vocab of the base]; the session's own buffer.

        Raises Cancelled, DecodeError (also without tokens) and NumericsError; the session then stands where it stood.
        """
        base, *memories = [context.feed(self.tokens, self.slot) for context in self.contexts]
        self.stats = mixing.mix(base, memories, self.weights, self.temperatures, self.row)
        return self.row

    def step(self) -> list[Sample]:
        """One round for this session alone, see Engine.step()."""
        return self.engine.step([self])[0]

    def rewind(self, length: int) -> None:
        """Go back to the first `length` tokens. The draws there will be those that were, if nothing else changed.

        Raises DecodeError for a length that the session does not have, and BusyError where it shares what it gives up
        with forks and what comes in its place would find no cells.
        """
        contexts = self.contexts
        if not 0 <= length <= len(self.tokens):
            raise DecodeError(f"a session of {len(self.tokens)} tokens has no first {length}")
        self.engine.require_cells(self.engine.shared_cells(self, length))
        del self.tokens[length:], self.cells[length:]
        for context in contexts:
            context.truncate(min(length, len(context.tokens[self.slot])), self.slot)
        self._emitted = [position for position in self._emitted if position < length]
        self.sampler.replay(self.tokens[position] for position in self._emitted)
        self.finished = "length" if len(self.tokens) == self.limit else None

    def fork(self, seed: int | None = None) -> "Session":
        """A second session that goes on from here; what both hold is stored once.

        It makes the same draws unless given another `seed`, 0 to 2^32 - 2. What this one has not read is read first.
        Raises BusyError where no slot or too few cells are free, OptionError for the seed, and as prefill().
        """
        return self.engine.fork(self, seed)

    def copy_to(self, twin: "Session") -> None:
        """Make a fresh session hold what this one holds."""
        twin.mix(zip(self.memories, self.weights, strict=True))
        for context in self.contexts:
            context.copy(self.slot, twin.slot)
        twin.tokens, twin._emitted = list(self.tokens), list(self._emitted)
        twin.cells = list(self.cells) if self.rolls_back else self.engine.new_cells(len(self.tokens))
        twin.finished, twin.acceptance = self.finished, Acceptance(self.acceptance.value)

    def close(self) -> None:
        """Give slot, cells and memories back. What the contexts hold stays until somebody needs the cells."""
        self.engine.leave(self)
