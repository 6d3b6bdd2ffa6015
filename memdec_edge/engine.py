"""Base and memories as one model.

Engine: the open models, their KV caches and recommended weights. Sequence: one timeline with its own weights; feed() it
tokens and it returns the row of mixed logits. Knows nothing of text, HTTP or terminals.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memdec_edge import fusion
from memdec_edge.errors import ContextError, OptionError
from memdec_edge.interrupt import AbortFlag
from memdec_edge.llama import Context, Model, Row
from memdec_edge.metadata import MemoryFacts
from memdec_edge.options import LoadOptions, MemoryOptions
from memdec_edge.pairing import require_match
from memdec_edge.weights import mixture_weights


@dataclass(frozen=True)
class Memory:
    """An open memory: its model, its KV cache, the facts of its GGUF and the weight that the user gave, if any."""

    model: Model
    context: Context
    facts: MemoryFacts
    literal: float | None


class Engine:
    """Opens a base GGUF and its memories, proves that they match and owns their KV caches.

    Raises MissingFileError, ModelFileError, RoleError, PairingError and OptionError; nothing stays open then.
    """

    def __init__(
        self, base: Path | str, memories: Iterable[MemoryOptions] = (), options: LoadOptions | None = None
    ) -> None:
        options = options or LoadOptions()
        self.memories: list[Memory] = []
        self.warnings: list[str] = []  # for a person: vocabularies that differ harmlessly, or are mixed by force
        self._models: list[Model] = []
        self._contexts: list[Context] = []
        self._abort = AbortFlag()  # one for all contexts: whichever decodes is stopped
        memories = list(memories)
        if len(memories) > fusion.MAX_MEMORIES:
            raise OptionError("--memory", f"given {len(memories)} times", f"at most {fusion.MAX_MEMORIES} can be mixed")
        if not fusion.implementation().startswith("native"):
            self.warnings.append(f"the mixture runs on {fusion.implementation()}, slower than the C extension")
        try:
            self.base = self._open(base, options)
            pairs = [(memory, self._open(memory.path, options)) for memory in memories]
            for _, model in pairs:
                warning = require_match(self.base, model, force=options.force)
                self.warnings += [warning] if warning else []
            trained = min(model.n_ctx_train for model in self._models)
            self.n_ctx = min(options.n_ctx or trained, trained)
            self.context = self._context(self.base, options)
            for memory, model in pairs:
                facts = MemoryFacts.from_gguf(model.path, model.metadata)
                self.memories.append(Memory(model, self._context(model, options), facts, memory.weight))
            self.weights()  # weights that cannot be are refused before any work
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path | str, options: LoadOptions) -> Model:
        self._models.append(Model(path, n_gpu_layers=options.n_gpu_layers))
        return self._models[-1]

    def _context(self, model: Model, options: LoadOptions) -> Context:
        self._contexts.append(Context(model, options, self.n_ctx, self._abort))
        return self._contexts[-1]

    def weights(self, total: float | None = None) -> list[float]:
        """A lambda for each memory; `total` is their sum where given (see weights.mixture_weights)."""
        recommended = [memory.facts.weight for memory in self.memories]
        return mixture_weights(recommended, [memory.literal for memory in self.memories], total)

    def sequence(self, total: float | None = None) -> "Sequence":
        """A timeline that mixes with weights(total). What the KV caches hold from earlier is reused where it fits.

        A cancel() that came too late for the timeline before is forgotten.
        """
        self._abort.take()
        return Sequence(self, self.weights(total))

    def cancel(self) -> None:
        """Stop the sequence that runs in another thread: its decode, now or next, raises Cancelled."""
        self._abort.set()

    def close(self) -> None:
        """Free KV caches, then models."""
        for context in self._contexts:
            context.close()
        for model in self._models:
            model.close()
        self._contexts, self._models, self.memories = [], [], []


class Sequence:
    """One timeline of an engine: its tokens, weights and the last mixed row.

    After a feed `stats` holds maximum, log-normaliser and entropy of each row that was mixed, the base first.
    """

    def __init__(self, engine: Engine, weights: list[float]) -> None:
        self.engine = engine
        self.weights = weights
        self.tokens: list[int] = []
        self.stats: list[fusion.RowStats] = []
        # A memory without weight is not run: it would cost its time and change nothing.
        self._active = [(m, w) for m, w in zip(engine.memories, weights, strict=True) if w > 0]
        self._row = np.empty(engine.base.n_vocab, np.float32)

    @property
    def unknown_tokens(self) -> range:
        """Ids of the base, padding as a rule, that some active memory could not be fed: not to be picked."""
        sizes = [memory.model.n_vocab for memory, _ in self._active]
        return range(min([self.engine.base.n_vocab, *sizes]), self.engine.base.n_vocab)

    def feed(self, tokens: Iterable[int]) -> Row:
        """Append `tokens` and return the mixed logits after the last, float32 [n_vocab of the base].

        The row is the sequence's own buffer, overwritten by the next feed. Raises ContextError, Cancelled, DecodeError
        and NumericsError; the sequence then still stands where it stood.
        """
        wanted = [*self.tokens, *tokens]
        if len(wanted) > self.engine.n_ctx:
            raise ContextError(len(wanted), 0, self.engine.n_ctx)
        base = self.engine.context.feed(wanted)
        rows = [memory.context.feed(wanted) for memory, _ in self._active]
        weights = [weight for _, weight in self._active]
        temperatures = [memory.facts.temperature for memory, _ in self._active]
        self.stats = fusion.fuse(base, rows, weights, temperatures, self._row)
        self.tokens = wanted
        return self._row

    def log_prob(self, token: int) -> float:
        """Log-probability (nats) of `token` under the mixture of the last row."""
        weights = [weight for _, weight in self._active]
        shares = [1 - sum(weights), *weights]  # the scale of the mixed row, see fusion.fuse
        offset = sum(share * row.log_normaliser for share, row in zip(shares, self.stats, strict=True))
        return float(self._row[token]) - offset

    def truncate(self, length: int) -> None:
        """Go back to the first `length` tokens; the KV caches follow with the next feed()."""
        del self.tokens[length:]
