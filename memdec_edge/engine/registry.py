"""The memories and indexes of a running engine: added, re-weighted and removed while the base stays as it is.

Each change makes a new version. What is removed while sessions use it takes no new ones; the registry closes it when
the last of them lets go. blend.py weighs. Knows nothing of sessions but how many use a memory or an index.
"""

from contextlib import ExitStack
from dataclasses import replace
from itertools import count

from memdec_edge.engine.blend import Index, Memory, Voice, resolve
from memdec_edge.errors import OptionError
from memdec_edge.gguf.header import Header
from memdec_edge.gguf.index_file import IndexFile
from memdec_edge.gguf.metadata import is_index
from memdec_edge.llama.abort import AbortFlag
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.llama.pairing import require_match
from memdec_edge.mixture.rows import MAX_MEMORIES
from memdec_edge.options import LoadOptions, MemoryOptions


class Registry:
    """The memories and indexes that new sessions may use, in the order in which they were added.

    `version` counts the changes, for callers that keep a copy of the list. options: those of memories
    (LoadOptions.of_memories); n_ctx: cells of each context at most.
    """

    def __init__(self, base: Model, options: LoadOptions, n_ctx: int, abort: AbortFlag) -> None:
        self.version = 0
        self._base, self._options, self._n_ctx, self._abort = base, options, n_ctx, abort
        self._numbers = count()
        self.open_memories: list[Memory] = []  # those that are leaving too
        self.open_indexes: list[Index] = []

    @property
    def memories(self) -> list[Memory]:
        """Those that are not leaving."""
        return [memory for memory in self.open_memories if not memory.leaving]

    @property
    def indexes(self) -> list[Index]:
        """Those that are not leaving."""
        return [index for index in self.open_indexes if not index.leaving]

    def add(self, options: MemoryOptions) -> Voice:
        """Open a memory or an index and let new sessions use it; after an error everything is as it was.

        Raises what open() and attach() do.
        """
        voice = self.open(options)
        try:
            self.attach(voice)
        except BaseException:
            voice.close()
            raise
        return voice

    def open(self, options: MemoryOptions) -> Voice:
        """Open a memory or an index, and prove that it fits the base. It changes nothing here: any thread may call it.

        Raises MissingFileError, ModelFileError (also for metadata that makes no sense and a context that cannot be
        made), RoleError, PairingError, and OptionError for one too many.
        """
        self._require_place(options)
        with Header(options.path) as header:
            index = is_index(header.scalars())
        return self._open_index(options) if index else self._open_memory(options)

    def attach(self, voice: Voice) -> None:
        """Let new sessions use what open() gave. Raises OptionError for one too many or weights that exceed 1."""
        self._require_place(voice.options)
        if isinstance(voice, Index):
            resolve(self.memories, [*self.indexes, voice])
            self.open_indexes.append(voice)
        else:
            resolve([*self.memories, voice], self.indexes)
            self.open_memories.append(voice)
        self.version += 1

    def _require_place(self, options: MemoryOptions) -> None:
        if len(self.memories) + len(self.indexes) >= MAX_MEMORIES:
            raise OptionError("memory", options.path, f"at most {MAX_MEMORIES} can be mixed; remove one first")

    def _open_index(self, options: MemoryOptions) -> Index:
        index = Index(next(self._numbers), IndexFile.open(options.path), options)
        try:
            index.file.require_tokenizer(self._base.path)
        except BaseException:
            index.close()
            raise
        return index

    def _open_memory(self, options: MemoryOptions) -> Memory:
        with ExitStack() as undo:
            model = Model(options.path, n_gpu_layers=self._options.n_gpu_layers)
            undo.callback(model.close)
            warning = require_match(self._base, model, force=self._options.force)
            # A session that uses the memory holds at most what it was trained for, so more cells would stay empty.
            n_ctx = min(self._n_ctx, model.n_ctx_train * self._options.n_seq)
            context = Context(model, self._options, n_ctx, self._abort, n_seq=self._options.n_seq)
            undo.callback(context.close)
            memory = Memory(next(self._numbers), model, context, options, warning)
            undo.pop_all()
        return memory

    def reweight(self, memory: Voice, weight: float | None) -> None:
        """Another lambda for new sessions; None: what the GGUF recommends.

        Raises OptionError for what was removed and for weights that make no mixture, and changes nothing.
        """
        if memory not in (*self.memories, *self.indexes):
            raise OptionError("memory", memory.path, "it was removed; add it again")
        before = memory.options
        memory.options = replace(before, weight=weight)
        try:
            resolve(self.memories, self.indexes)
        except OptionError:
            memory.options = before
            raise
        self.version += 1

    def remove(self, memory: Voice) -> None:
        """Give a memory or an index to no new session, and close it as soon as no session uses it."""
        if memory in (*self.memories, *self.indexes):
            memory.leaving = True
            self.version += 1
            self._close_unused()

    def hold(self, memory: Voice) -> None:
        """One more session uses a memory or an index."""
        memory.users += 1

    def release(self, memory: Voice) -> None:
        """One session less uses it."""
        memory.users -= 1
        self._close_unused()

    def _close_unused(self) -> None:
        for memory in [memory for memory in self.open_memories if memory.leaving and not memory.users]:
            self.open_memories.remove(memory)
            memory.close()
        for index in [index for index in self.open_indexes if index.leaving and not index.users]:
            self.open_indexes.remove(index)
            index.close()

    def close(self) -> None:
        """Close all memories and indexes, used or not."""
        for memory in self.open_memories:
            memory.close()
        for index in self.open_indexes:
            index.close()
        self.open_memories, self.open_indexes = [], []
