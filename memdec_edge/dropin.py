"""MemoryLlama: a `llama_cpp.Llama` that mixes memories into each row of logits, for programs that were written for one.

    from memdec_edge import MemoryLlama

    llama = MemoryLlama("base.gguf", memories=["memdec-medicine.gguf"], lam=0.4, n_ctx=2048)
    print(llama.create_completion("Anaemia is", max_tokens=32)["choices"][0]["text"])

It overrides `eval` alone: the base decodes, the memories read the same tokens, and the mixture takes the place of the
base's logits in llama.cpp's own buffer. Knows nothing of sampling, chat and grammars: they are llama-cpp-python's.
"""

import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from memdec_edge.engine.blend import Memory, MemoryMixture, resolve
from memdec_edge.engine.registry import Registry
from memdec_edge.errors import ContextError, OptionError
from memdec_edge.hub import local, memory_of
from memdec_edge.llama.abort import AbortFlag
from memdec_edge.llama.context import Context
from memdec_edge.llama.hooked import HookedLlama
from memdec_edge.llama.model import Model
from memdec_edge.mixture.mixing import mix
from memdec_edge.mixture.online import learn
from memdec_edge.mixture.rows import MAX_MEMORIES, Row, RowStats
from memdec_edge.mixture.weights import Mixture
from memdec_edge.options import MemoryOptions, MixtureOptions, check_range

Lambda = float | Literal["auto"]
Memories = Iterable[Path | str | tuple[Path | str, float | None]]
SLICE = 64  # rows of a batch that is read for evidence: at 151,936 tokens their logits take 39 MB
OUTSIDE = (
    "code outside llama-cpp-python reads `ctx` of a MemoryLlama: what it decodes there goes past the memories, and its "
    "logits are the base's alone; decode with eval(), generate() or the create_... methods"
)


class MemoryLlama(HookedLlama):
    """A `llama_cpp.Llama` with memories: its constructor and methods, and the following.

    memories: GGUFs, or pairs of a GGUF and a weight of its own, 0 to 1 (None: none of its own). lam: the weight of
    the memories together, 0 to 1; "auto", the default, begins with what they recommend and follows the text, unless a
    memory has a weight of its own. 0 runs no memory. force: mix models whose vocabularies differ.

    The memories take threads, batch size, cache types, flash attention and GPU layers from the base's arguments. A text
    is as long as they were trained for at most: n_ctx() says so. Like Llama it serves one thread at a time.

    Raises what Llama raises, ModelFileError, MissingFileError, RoleError and PairingError for a memory, and OptionError
    for weights that make no mixture.
    """

    def __init__(
        self, model_path: str | Path, *, memories: Memories = (), lam: Lambda = "auto", force: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        self._open: dict[object, Memory] = {}  # by the identity of their files, in the order of _named
        self.n_mixed = 0  # rows so far in which a memory took part
        self._lam, self._force = _checked(lam), force
        self._named: list[MemoryOptions] = []
        self._timeline = _Timeline(MemoryMixture.of(()), 0)
        super().__init__(model_path, **options)
        try:
            self._scratch: Row = np.empty((1, self._n_vocab), np.float32)  # the base's own rows of the last decode
            self._mix_these([_named(memory) for memory in memories], lam)
        except BaseException:
            self.close()
            raise

    # --- which memories, how much they weigh --------------------------------------------------------------------------

    def set_memories(self, memories: Memories) -> None:
        """Mix these memories from the next decode on, and no others; see the class for what they may be.

        A memory that is open stays open, and the base keeps what it has read. Where each has a weight of its own, `lam`
        waits for one that has none. Errors as in the constructor; then nothing has changed.
        """
        named = [_named(memory) for memory in memories]
        own = bool(named) and all(options.weight is not None for options in named)
        self._mix_these(named, "auto" if own else self._lam)

    def _mix_these(self, named: list[MemoryOptions], lam: Lambda) -> None:
        if len(named) > MAX_MEMORIES:
            raise OptionError("memories", f"a list of {len(named)}", f"at most {MAX_MEMORIES} can be mixed")
        opened: dict[object, Memory] = {}
        try:
            for options in named:
                key = _identity(options.path)
                if key in opened:
                    raise OptionError("memories", options.path, "given twice; add up its weights")
                opened[key] = self._open[key] if key in self._open else self._load(options.path)
            self._choose(named, opened, lam)
        except BaseException:
            _close(memory for key, memory in opened.items() if key not in self._open)
            raise
        _close(memory for key, memory in self._open.items() if key not in opened)
        self._open, self._named = opened, named

    @property
    def lam(self) -> Lambda:
        """The weight of the memories together, see the class. A new value counts from the next decode on."""
        return self._lam

    @lam.setter
    def lam(self, lam: Lambda) -> None:
        self._choose(self._named, self._open, _checked(lam))
        self._lam = lam

    @property
    def weights(self) -> dict[str, float]:
        """How much each memory that runs weighs in the next row, by its path; the base has the rest."""
        mixture, memories = self._timeline.after(self.n_tokens), self._timeline.memories
        return {str(memory.options.path): weight for memory, weight in zip(memories, mixture.weights, strict=True)}

    @cached_property
    def _vocabulary(self) -> Model:
        """The base's, which memories are compared with."""
        return Model(self.model_path, vocab_only=True)

    def _load(self, path: Path) -> Memory:
        options = self.load_options(force=self._force)
        memory = Registry(self._vocabulary, options, options.n_ctx, AbortFlag()).add(MemoryOptions(path))
        if not isinstance(memory, Memory):
            memory.close()
            raise OptionError("memories", path, "an index of documents; open_model() mixes one, MemoryLlama does not")
        if memory.warning:
            warnings.warn(memory.warning, UserWarning, stacklevel=4)
        return memory

    def _choose(self, named: list[MemoryOptions], opened: dict[object, Memory], lam: Lambda) -> None:
        """Mix so from here on. Changes nothing where the weights make no mixture."""
        memories = []
        for options, memory in zip(named, opened.values(), strict=True):
            weighed = copy(memory)  # model and cache are the same
            weighed.options = options
            memories.append(weighed)
        learning = MixtureOptions(total=None if lam == "auto" else lam) if memories else None
        try:
            chosen = resolve(memories, options=learning).running()
        except OptionError as error:
            raise OptionError("lam", error.value, error.allowed) if error.field == "total" else error from None
        shortest = min((memory.model.n_ctx_train for memory in chosen.memories), default=None)
        if shortest is not None and shortest < self.load_options().n_ctx:
            message = f"a memory was trained for {shortest} tokens: n_ctx is {shortest} while it is mixed"
            warnings.warn(message, UserWarning, stacklevel=4)
        self.limit(shortest)
        self._timeline = _Timeline(chosen, self._timeline.prompt)
        self.give_back(self.n_tokens)  # the row at hand was mixed otherwise
        self._outside = OUTSIDE if chosen.memories else ""

    # --- reading and mixing -------------------------------------------------------------------------------------------

    def generate(self, tokens: Sequence[int], *args: Any, **options: Any) -> Generator[int, Sequence[int] | None, None]:
        """As `Llama.generate`. Weights that learn know from here which tokens are a prompt's."""
        tokens = list(tokens)
        if self._timeline.begin(len(tokens)):
            self.give_back(self.n_tokens)  # the row at hand was mixed with other weights
        found: Generator[int, Sequence[int] | None, None] = super().generate(tokens, *args, **options)
        return found

    def eval(self, tokens: Sequence[int]) -> None:
        """As `Llama.eval`, and the logits, and `scores` with logits_all, are those of the mixture.

        Raises ContextError beyond n_ctx(), DecodeError for a token that a memory lacks, NumericsError for a row with
        NaN, and KeyboardInterrupt on Ctrl-C in a memory's decode. What was read before a failed decode is kept.
        """
        rest = list(tokens)
        if not rest or not self._timeline.memories:
            super().eval(rest)  # of no tokens, where `generate` has the row that it needs: it was mixed already
            return
        if self.n_tokens + len(rest) > self.n_ctx():
            raise ContextError(self.n_tokens + len(rest), 0, self.n_ctx())
        while rest:
            count, every_row = self._piece(len(rest))
            self._read(rest[:count], every_row)
            rest = rest[count:]

    def _piece(self, count: int) -> tuple[int, bool]:
        """How many of the next `count` tokens to decode at a time, and whether the row of each is wanted."""
        timeline, most = self._timeline, min(count, self.n_batch)
        if not timeline.rule:
            return most, False
        before = timeline.first_evidence - 1 - self.n_tokens  # tokens whose rows say nothing of evidence
        if before > 0:
            return min(most, before), False
        return min(most, SLICE), self.n_tokens < timeline.prompt

    def _read(self, tokens: list[int], every_row: bool) -> None:
        """Decode in all models, mix in place."""
        timeline, held = self._timeline, self.held
        whole = held + tokens
        try:
            timeline.extend(held, whole)
            rows = self.decode(tokens, every_row=every_row)
            first = len(whole) - len(rows)  # the token whose row is the first
            read = [_rows(memory.context, whole, first) for memory in timeline.memories]
            if len(rows) > len(self._scratch):
                self._scratch = np.empty_like(rows)
            for length, (row, *others) in enumerate(zip(rows, *read, strict=True), first + 1):
                self._mix(row, others, length, self._scratch[length - first - 1])
                timeline.note(length)
            self.keep_scores(rows)
        except BaseException:
            self.give_back(len(held))
            raise

    def _mix(self, row: Row, others: list[Row], length: int, base: Row) -> None:
        """Mix the row after `length` tokens in place, and leave what it was in `base`."""
        base[:] = row
        stats = mix(base, others, self._timeline.after(length), row)
        row[min(len(other) for other in others) :] = -np.inf  # no token that a memory could not read
        self._timeline.keep_row(length, [base, *others], stats)
        self.n_mixed += 1

    # --- the rest of Llama --------------------------------------------------------------------------------------------

    def create_chat_completion(self, messages: Sequence[Any], *args: Any, **options: Any) -> Any:
        """As `Llama.create_chat_completion`. Raises OptionError for parts of messages that are no text."""
        if self._timeline.memories:
            for message in messages:
                _refuse_media(message)
        return super().create_chat_completion(messages, *args, **options)

    def __getstate__(self) -> dict[str, Any]:
        memories = [(options.path, options.weight) for options in self._named]
        own: dict[str, Any] = super().__getstate__()
        return own | {"memories": memories, "lam": self._lam, "force": self._force}

    def close(self) -> None:
        """Free the memories, the model and its context."""
        _close(getattr(self, "_open", {}).values())  # __init__ may not have come so far
        self._open = {}
        self.__dict__.pop("_vocabulary", None)
        super().close()


class _Timeline:
    """The tokens that were read, what each model said of them before any mixing, and the weights that follow.

    memories: those that run. rule: how the weights learn; None: they are fixed. prompt: tokens that count as a prompt.
    What was said of a token is in the row before it. It is lost where no such row was kept.
    """

    def __init__(self, chosen: MemoryMixture, prompt: int) -> None:
        self.memories, self.rule, self.prompt = chosen.memories, chosen.rule(), prompt
        self._initial = self._mixture = chosen.mixture
        self._learning = chosen.learning or MixtureOptions()
        self._length = 0  # of the tokens from which _mixture has learned; 0: of none
        self._tokens: list[int] = []
        self._said: list[tuple[float, ...] | None] = []  # log-probs of each token, nats, the base's first
        self._rows: dict[int, tuple[list[Row], list[RowStats]]] = {}  # of the last decode, by the tokens before them

    @property
    def first_evidence(self) -> int:
        """The place of the first token from which the weights learn; 0 where they do not learn."""
        return max(1, self.prompt - self._learning.evidence) if self.rule else 0

    def begin(self, prompt: int) -> bool:
        """A prompt of so many tokens comes. Return whether the weights change with that."""
        if not self.rule or prompt == self.prompt:
            return False
        self.prompt, self._length = prompt, 0
        return True

    def extend(self, held: list[int], whole: list[int]) -> None:
        """The models are to read `whole`, of which the base holds `held` already."""
        if not self.rule:
            return
        shared = HookedLlama.longest_token_prefix(self._tokens, whole) if self._tokens != held else len(held)
        if shared < self._length:
            self._length = 0
        self._said[shared:] = [None] * (len(whole) - shared)
        self._tokens = whole
        if shared >= len(held):
            self.note(len(held))
        self._rows.clear()  # the decode that comes overwrites them

    def keep_row(self, length: int, rows: list[Row], stats: list[RowStats]) -> None:
        """The rows after `length` tokens, of each model, unmixed; they stay as they are until extend()."""
        if self.rule:
            self._rows[length] = (rows, stats)

    def note(self, at: int) -> None:
        """Keep what the row before the token at a place said of it, if that row is of the last decode."""
        if at in self._rows and at < len(self._tokens) and self._said[at] is None:
            rows, stats = self._rows[at]
            temperatures = (1.0, *self._mixture.temperatures)
            self._said[at] = tuple(
                stat.log_prob(row, self._tokens[at], temperature)
                for row, stat, temperature in zip(rows, stats, temperatures, strict=True)
            )

    def after(self, length: int) -> Mixture:
        """The mixture of the row after `length` tokens."""
        if not self.rule:
            return self._mixture
        if not self.first_evidence <= self._length <= length:
            self._length, self._mixture = self.first_evidence, self._initial
        for rate, places in (
            (1.0, range(self._length, min(length, self.prompt))),
            (self._learning.generated, range(max(self._length, self.prompt), length)),
        ):
            if said := [self._said[at] for at in places if self._said[at]]:
                rule = self.rule.at(rate * self.rule.eta)
                self._mixture = learn(self._mixture, rule, np.array(said).T).mixture
        self._length = max(length, self._length)
        return self._mixture


def _rows(context: Context, tokens: list[int], first: int) -> Iterable[Row]:
    """The rows after tokens[first] and each that follows, valid until the next is asked for."""
    if first == len(tokens) - 1:
        return [context.feed(tokens)]  # what the context lacks in as few decodes as can be
    context.prefill(tokens[:first])
    return context.feed_rows(tokens[first:], most=SLICE)


def _named(memory: Path | str | tuple[Path | str, float | None]) -> MemoryOptions:
    path, weight = memory if isinstance(memory, tuple) else (memory, None)
    return MemoryOptions(local(Path(path), memory_of), weight)


def _identity(path: Path) -> object:
    """Of the file under a path: another one once it was replaced."""
    try:
        stat = path.stat()
    except OSError:
        return path  # opening it says what is wrong
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _checked(lam: Lambda) -> Lambda:
    if lam != "auto":
        if isinstance(lam, bool) or not isinstance(lam, Real):
            raise OptionError("lam", lam, 'must be a number from 0 to 1, or "auto"')
        check_range("lam", lam, 0.0, 1.0)
    return lam


def _close(memories: Iterable[Memory]) -> None:
    for memory in memories:
        memory.close()


def _refuse_media(message: Any) -> None:
    parts = message.get("content") if isinstance(message, Mapping) else None
    for part in parts if isinstance(parts, list) else ():
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text":
            advice = "memories read text alone; call set_memories([]) first, or leave the part out"
            raise OptionError("messages", f"a list with a part of type {kind}", advice)
