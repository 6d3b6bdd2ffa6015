"""Open memories and indexes, and what they weigh beside the base: a lambda, resolved.

An index takes its part of the mixture only after a match, the more the longer the match is: its file has a table of
trust. Knows nothing of how they are opened, and of sessions.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from memdec_edge.errors import OptionError
from memdec_edge.gguf.index_file import IndexFile
from memdec_edge.gguf.metadata import MemoryMetadata
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.mixture.match import CLASSES
from memdec_edge.mixture.weights import Mixture, SoftBayes, lifted, mixture_weights
from memdec_edge.options import ETA, INITIAL_INDEX, INITIAL_LAMBDA, INITIAL_POWER, SHARE, MemoryOptions, MixtureOptions


class Memory:
    """An open memory: its model, its KV cache, its GGUF's metadata and the weight that the user gave, if any."""

    def __init__(self, number: int, model: Model, context: Context, options: MemoryOptions, warning: str) -> None:
        self.number = number  # never given twice
        self.model, self.context, self.options = model, context, options
        self.metadata = MemoryMetadata.from_gguf(model.path, model.metadata)
        self.warning = warning  # of pairing, or empty
        self.users = 0  # sessions that mix it
        self.leaving = False

    @property
    def path(self) -> Path:
        """Its file."""
        return self.model.path

    def close(self) -> None:
        """Free KV cache and weights."""
        self.context.close()
        self.model.close()


class Index:
    """An open index: its file, its metadata and the weight that the user gave, if any."""

    def __init__(self, number: int, file: IndexFile, options: MemoryOptions) -> None:
        self.number, self.file, self.options = number, file, options
        self.metadata = MemoryMetadata.from_gguf(file.path, file.metadata)
        self.trust: tuple[float, ...] = tuple(file.trust.tolist())  # by class of match length, of the longest 1
        self.users = 0
        self.leaving = False

    @property
    def path(self) -> Path:
        """Its file."""
        return self.file.path

    def close(self) -> None:
        """Let the file go."""
        self.file.close()


Voice = Memory | Index


class MemoryMixture(NamedTuple):
    """Memories and indexes with their weights and temperatures: a lambda, resolved.

    learning: how the weights, which begin so, follow the text; None: they are fixed.
    """

    memories: tuple[Memory, ...]
    mixture: Mixture
    learning: MixtureOptions | None = None
    indexes: tuple[Index, ...] = ()

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the memories where no index has a match; the base has the rest."""
        return self.mixture.weights

    @property
    def voices(self) -> tuple[Voice, ...]:
        """The memories, then the indexes."""
        return (*self.memories, *self.indexes)

    @property
    def longest(self) -> tuple[float, ...]:
        """Of the indexes after the longest matches."""
        return self.mixture.vectors[-1][len(self.memories) :]

    @classmethod
    def of(cls, weights: Iterable[tuple[Voice, float]], learning: MixtureOptions | None = None) -> "MemoryMixture":
        """Each memory with its weight, at the temperature of its file, and each index with its weight after the longest
        matches. Shorter ones weigh less by the index's trust, and the base has what is left.

        Raises OptionError for weights that make no mixture and for a memory or index given twice.
        """
        pairs = list(weights)
        require_single([voice for voice, _ in pairs])
        memories = [(voice, weight) for voice, weight in pairs if isinstance(voice, Memory)]
        indexes = [(voice, weight) for voice, weight in pairs if isinstance(voice, Index)]
        own = [weight for _, weight in memories]
        matched = [[*own, *(weight * index.trust[c] for index, weight in indexes)] for c in range(len(CLASSES))]
        return cls._with([memory for memory, _ in memories], [index for index, _ in indexes], own, matched, learning)

    @classmethod
    def _with(
        cls, memories: Sequence[Memory], indexes: Sequence[Index], weights: Sequence[float],
        matched: Iterable[Sequence[float]], learning: MixtureOptions | None,
    ) -> "MemoryMixture":  # fmt: skip
        temperatures = tuple(memory.metadata.temperature for memory in memories)
        vectors = tuple(tuple(vector) for vector in matched) if indexes else ()
        return cls(tuple(memories), Mixture(tuple(weights), temperatures, vectors), learning, tuple(indexes))

    def running(self) -> "MemoryMixture":
        """The same without what has weight 0, which does not run. Weights that learn are never 0."""
        if self.learning:
            return self
        n = len(self.memories)
        kept = [k for k in range(n + len(self.indexes)) if any(len(v) > k and v[k] > 0 for v in self.mixture.vectors)]
        memories, indexes = [self.memories[k] for k in kept if k < n], [self.indexes[k - n] for k in kept if k >= n]
        matched = ([vector[k] for k in kept] for vector in self.mixture.matched)
        return self._with(memories, indexes, [self.weights[k] for k in kept if k < n], matched, None)

    def rule(self) -> SoftBayes | None:
        """How the weights learn, in numbers; None: they are fixed.

        eta and share are those of the options, else what was tuned for the memory if it is the only one.
        """
        if not (self.memories or self.indexes) or not self.learning:
            return None
        tuned = self.memories[0].metadata if len(self.memories) == 1 else MemoryMetadata()
        eta, share = (
            next(value for value in values if value is not None)
            for values in ((self.learning.eta, tuned.eta, ETA), (self.learning.share, tuned.share, SHARE))
        )
        return SoftBayes(self.weights, eta, share, self.mixture.matched)


def require_single(voices: Sequence[Voice]) -> None:
    """Raise OptionError for a memory or index given twice."""
    for number, voice in enumerate(voices):
        if voice in voices[:number]:
            raise OptionError("memory", voice.path, "given twice; add up its weights")


def resolve(
    memories: Sequence[Memory], indexes: Sequence[Index] = (), options: MixtureOptions | None = None
) -> MemoryMixture:
    """The mixture of `memories` and `indexes`. None: with fixed weights, as the files or the user recommend.

    With options the weights learn, unless the user fixed any: by options.total, the sum of the weights (see
    weights.mixture_weights), or by a weight of a memory's or an index's own. None of those that learn begins with 0.

    After a match an index takes its part of what base and memories have, or with a total of that: its weight times its
    trust in the match's length, or a power of the trust where weights learn. A weight of its own is taken as it is,
    from the base.
    """
    voices: list[Voice] = [*memories, *indexes]
    literal = [voice.options.weight for voice in voices]
    total = options.total if options else None
    n = len(memories)
    learning = options if total is None and voices and literal == [None] * len(voices) else None
    learns = learning is not None
    if total is not None:
        mixture_weights([None] * len(voices), literal, total)  # its errors are of all voices together
    own = _first(memories) if learns else _fixed(literal[:n], [m.metadata.weight for m in memories], total)
    whole = 1.0 if total is not None and None not in literal[:n] else None  # without a memory to share it with
    taken = _fixed(literal[n:], [INITIAL_INDEX if learns else index.metadata.weight for index in indexes], whole)
    matched = []
    for c in range(len(CLASSES)):
        trusted = [index.trust[c] ** (INITIAL_POWER if learns else 1) for index in indexes]
        parts = [weight * trust for weight, trust in zip(taken, trusted, strict=True)]
        every = [*own, *parts]
        given = sum(weight for weight, one in zip(every, literal, strict=True) if one is not None)
        room = max(1.0 - given, 0.0) if total is None else total
        free = 1.0 - sum(part for part, one in zip(parts, literal[n:], strict=True) if one is None)
        vector = [
            weight if one is not None else weight * free if k < n else weight * room
            for k, (weight, one) in enumerate(zip(every, literal, strict=True))
        ]
        matched.append(tuple(vector))
    vectors = (tuple(own), *matched)
    weights, *matched = lifted(vectors) if learns else vectors
    return MemoryMixture._with(memories, indexes, weights, matched, learning)


def _first(memories: Sequence[Memory]) -> list[float]:
    """The weights with which those that learn begin."""
    found = [(memory.metadata.first_weight, memory.metadata.weight, INITIAL_LAMBDA) for memory in memories]
    begin = [next(weight for weight in each if weight is not None) for each in found]
    return mixture_weights(begin, [None] * len(begin), None)


def _fixed(literal: Sequence[float | None], recommended: Sequence[float | None], total: float | None) -> list[float]:
    """Weights as given, as recommended, or of a total that those without a weight of their own share."""
    return mixture_weights(recommended, literal, total if None in literal else None)
