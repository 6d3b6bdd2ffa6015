"""The memories of a running engine: added, re-weighted and removed without touching the base.

Each change makes a new version. A memory that is removed while sessions use it takes no new ones and is closed when
the last of them lets go. Knows nothing of sessions beyond how many use a memory.
"""

from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path

from memdec_edge.errors import OptionError
from memdec_edge.gguf.metadata import MemoryMetadata
from memdec_edge.llama.abort import AbortFlag
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.llama.pairing import require_match
from memdec_edge.mixture import mixing
from memdec_edge.mixture.weights import mixture_weights
from memdec_edge.options import LoadOptions, MemoryOptions


class Memory:
    """An open memory: its model, its KV cache, the facts of its GGUF and the weight that the user gave, if any."""

    def __init__(self, number: int, model: Model, context: Context, options: MemoryOptions, warning: str) -> None:
        self.number = number  # never given twice
        self.model, self.context, self.options = model, context, options
        self.facts = MemoryMetadata.from_gguf(model.path, model.metadata)
        self.warning = warning  # of pairing, or empty
        self.users = 0  # sessions that mix it
        self.leaving = False

    def close(self) -> None:
        """Free KV cache and weights."""
        self.context.close()
        self.model.close()


class Registry:
    """The memories that new sessions may use, in the order in which they were added.

    `version` counts the changes, for whoever keeps a copy of the list. options: those of memories
    (LoadOptions.of_memories); n_ctx: cells of each context.
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
        """Open a memory beside the others. Errors: open_memory() and attach(); everything then stays as it was."""
        return self.attach(options, *open_memory(self._base, options.path, self._options))

    def attach(self, options: MemoryOptions, model: Model, warning: str = "") -> Memory:
        """Add what open_memory() opened, and own it: it is closed if it cannot be added.

        Raises OptionError for one too many or weights that sum to more than 1, ModelFileError for facts that make no
        sense or a context that cannot be made.
        """
        with ExitStack() as undo:
            undo.callback(model.close)
            if len(self.memories) >= mixing.MAX_MEMORIES:
                raise OptionError("--memory", options.path, f"at most {mixing.MAX_MEMORIES} can be mixed")
            context = Context(model, self._options, self._n_ctx, self._abort, n_seq=self._options.n_seq)
            undo.callback(context.close)
            memory = Memory(next(self._numbers), model, context, options, warning)
            weights([*self.memories, memory])
            undo.pop_all()
        self.open_memories.append(memory)
        self.version += 1
        return memory

    def reweight(self, memory: Memory, weight: float | None) -> None:
        """Another lambda for new sessions; None: what the GGUF recommends.

        Raises OptionError for a memory that was removed and for weights that cannot be, and changes nothing.
        """
        if memory not in self.memories:
            raise OptionError("the memory", memory.model.path, "it was removed; add it again")
        before = memory.options
        memory.options = replace(before, weight=weight)
        try:
            weights(self.memories)
        except OptionError:
            memory.options = before
            raise
        self.version += 1

    def remove(self, memory: Memory) -> None:
        """Take no new sessions, and close the memory as soon as none uses it."""
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
        """Close all, whoever uses them."""
        for memory in self.open_memories:
            memory.close()
        self.open_memories = []


def open_memory(base: Model, path: Path | str, options: LoadOptions) -> tuple[Model, str]:
    """A memory's model, proved to speak the vocabulary of `base`, and a warning for a person, or an empty string.

    options: those of memories. Raises MissingFileError, ModelFileError, RoleError and PairingError; the file is then
    closed.
    """
    model = Model(path, n_gpu_layers=options.n_gpu_layers)
    try:
        return model, require_match(base, model, force=options.force)
    except BaseException:
        model.close()
        raise


def weights(memories: list[Memory], total: float | None = None) -> list[float]:
    """A lambda for each memory; `total` is their sum where given (see weights.mixture_weights)."""
    recommended = [memory.facts.weight for memory in memories]
    return mixture_weights(recommended, [memory.options.weight for memory in memories], total)
