"""The memories of a running engine: added, re-weighted and removed while the base stays as it is.

Each change makes a new version. A memory that is removed while sessions use it takes no new ones; the registry closes
it when the last of them lets go. Knows nothing of sessions but how many use a memory.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from memdec_edge.errors import OptionError
from memdec_edge.gguf.metadata import MemoryMetadata
from memdec_edge.llama.abort import AbortFlag
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.llama.pairing import require_match
from memdec_edge.mixture.rows import MAX_MEMORIES
from memdec_edge.mixture.weights import LEAST_INITIAL, Mixture, SoftBayes, lift, mixture_weights, shares_of
from memdec_edge.options import ETA, INITIAL_LAMBDA, SHARE, LoadOptions, MemoryOptions, MixtureOptions


class Memory:
    """An open memory: its model, its KV cache, its GGUF's metadata and the weight that the user gave, if any."""

    def __init__(self, number: int, model: Model, context: Context, options: MemoryOptions, warning: str) -> None:
        self.number = number  # never given twice
        self.model, self.context, self.options = model, context, options
        self.metadata = MemoryMetadata.from_gguf(model.path, model.metadata)
        self.warning = warning  # of pairing, or empty
        self.users = 0  # sessions that mix it
        self.leaving = False

    def close(self) -> None:
        """Free KV cache and weights."""
        self.context.close()
        self.model.close()


class MemoryMixture(NamedTuple):
    """Memories with their weights and temperatures: a lambda, resolved.

    learning: how the weights, which begin so, follow the text; None: they are fixed.
    """

    memories: tuple[Memory, ...]
    mixture: Mixture
    learning: MixtureOptions | None = None

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the memories; the base has the rest."""
        return self.mixture.weights

    @classmethod
    def of(cls, weights: Iterable[tuple[Memory, float]], learning: MixtureOptions | None = None) -> "MemoryMixture":
        """Each memory with its weight, at the temperature of its file.

        Raises OptionError for weights that make no mixture and for a memory given twice.
        """
        pairs = list(weights)
        for index, (memory, _) in enumerate(pairs):
            if memory in [other for other, _ in pairs[:index]]:
                raise OptionError("memory", memory.model.path, "given twice; add up its weights")
        memories = tuple(memory for memory, _ in pairs)
        temperatures = tuple(memory.metadata.temperature for memory in memories)
        return cls(memories, Mixture(tuple(weight for _, weight in pairs), temperatures), learning)

    def running(self) -> "MemoryMixture":
        """The same without the memories of weight 0, which do not run. Weights that learn are never 0."""
        return (
            self
            if self.learning
            else MemoryMixture.of(
                (memory, weight) for memory, weight in zip(self.memories, self.weights, strict=True) if weight > 0
            )
        )

    def rule(self) -> SoftBayes | None:
        """How the weights learn, in numbers; None: they are fixed.

        eta and share are those of the options, else what was tuned for the memory if it is the only one.
        """
        if not self.memories or not self.learning:
            return None
        tuned = self.memories[0].metadata if len(self.memories) == 1 else MemoryMetadata()
        eta, share = (
            next(value for value in values if value is not None)
            for values in ((self.learning.eta, tuned.eta, ETA), (self.learning.share, tuned.share, SHARE))
        )
        return SoftBayes(self.weights, eta, share)


class Registry:
    """The memories that new sessions may use, in the order in which they were added.

    `version` counts the changes, for callers that keep a copy of the list. options: those of memories
    (LoadOptions.of_memories); n_ctx: cells of each context at most.
    """

    def __init__(self, base: Model, options: LoadOptions, n_ctx: int, abort: AbortFlag) -> None:
        self.version = 0
        self._base, self._options, self._n_ctx, self._abort = base, options, n_ctx, abort
        self._numbers = count()
        self.open_memories: list[Memory] = []  # those that are leaving too

    @property
    def memories(self) -> list[Memory]:
        """Those that are not leaving."""
        return [memory for memory in self.open_memories if not memory.leaving]

    def add(self, options: MemoryOptions) -> Memory:
        """Open a memory beside the others; after an error everything is as it was.

        Raises MissingFileError, ModelFileError (also for metadata that makes no sense and a context that cannot be
        made), RoleError, PairingError, and OptionError for one memory too many or weights that sum to more than 1.
        """
        if len(self.memories) >= MAX_MEMORIES:
            raise OptionError("memory", options.path, f"at most {MAX_MEMORIES} can be mixed; remove one first")
        with ExitStack() as undo:
            model = Model(options.path, n_gpu_layers=self._options.n_gpu_layers)
            undo.callback(model.close)
            warning = require_match(self._base, model, force=self._options.force)
            # A session that uses the memory holds at most what it was trained for, so more cells would stay empty.
            n_ctx = min(self._n_ctx, model.n_ctx_train * self._options.n_seq)
            context = Context(model, self._options, n_ctx, self._abort, n_seq=self._options.n_seq)
            undo.callback(context.close)
            memory = Memory(next(self._numbers), model, context, options, warning)
            resolve([*self.memories, memory])
            undo.pop_all()
        self.open_memories.append(memory)
        self.version += 1
        return memory

    def reweight(self, memory: Memory, weight: float | None) -> None:
        """Another lambda for new sessions; None: what the GGUF recommends.

        Raises OptionError for a memory that was removed and for weights that make no mixture, and changes nothing.
        """
        if memory not in self.memories:
            raise OptionError("memory", memory.model.path, "it was removed; add it again")
        before = memory.options
        memory.options = replace(before, weight=weight)
        try:
            resolve(self.memories)
        except OptionError:
            memory.options = before
            raise
        self.version += 1

    def remove(self, memory: Memory) -> None:
        """Give the memory to no new session, and close it as soon as no session uses it."""
        if memory in self.memories:
            memory.leaving = True
            self.version += 1
            self._close_unused()

    def hold(self, memory: Memory) -> None:
        """One more session uses a memory."""
        memory.users += 1

    def release(self, memory: Memory) -> None:
        """One session less uses a memory."""
        memory.users -= 1
        self._close_unused()

    def _close_unused(self) -> None:
        for memory in [memory for memory in self.open_memories if memory.leaving and not memory.users]:
            self.open_memories.remove(memory)
            memory.close()

    def close(self) -> None:
        """Close all memories, used or not."""
        for memory in self.open_memories:
            memory.close()
        self.open_memories = []


def resolve(memories: list[Memory], options: MixtureOptions | None = None) -> MemoryMixture:
    """The mixture of `memories`. None: with fixed weights, as the memories or the user recommend.

    With options the weights learn, unless the user fixed any: by options.total, the sum of the weights (see
    weights.mixture_weights), or by a weight of a memory's own. Weights that learn begin with 0.02 or more.
    """
    recommended = [memory.metadata.weight for memory in memories]
    literal = [memory.options.weight for memory in memories]
    total = options.total if options else None
    if options and memories and total is None and literal == [None] * len(memories):
        found = [(memory.metadata.first_weight, memory.metadata.weight, INITIAL_LAMBDA) for memory in memories]
        begin = [next(weight for weight in each if weight is not None) for each in found]
        weights = lift(shares_of(tuple(mixture_weights(begin, literal, None))), LEAST_INITIAL)
        return MemoryMixture.of(zip(memories, weights, strict=True), options)
    return MemoryMixture.of(zip(memories, mixture_weights(recommended, literal, total), strict=True))
