"""llama-cpp-python's own `Llama`, opened up: a subclass sees each row of logits before anything samples from it.

`Llama.eval` decodes, and llama.cpp's samplers then read the context's own buffer of logits. HookedLlama hands out that
buffer as an array: what is written there is what `create_completion`, grammars and logits processors see. Everything
private that this needs of `Llama` stands here; tests/llama/test_hooked.py pins it. Knows nothing of memories.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from memdec_edge.errors import DecodeError
from memdec_edge.gguf.header import Header
from memdec_edge.llama import library
from memdec_edge.llama.trial import refuse_what_ends
from memdec_edge.mixture.rows import Row
from memdec_edge.options import CACHE_TYPES, LoadOptions

KNOWN = frozenset(inspect.signature(llama_cpp.Llama.__init__).parameters) - {"self", "kwargs"}
MAX_THREADS = 512  # of LoadOptions


class HookedLlama(llama_cpp.Llama):  # type: ignore[misc]  # llama-cpp-python has no types
    """A `llama_cpp.Llama` for subclasses that override eval() and call decode() in it.

    Takes what `Llama` takes. `Llama` drops keywords that it does not know, and so does this class, with a warning.
    `draft_model` implies `logits_all`. Raises ModelFileError for a file that would end the process, and what `Llama`
    raises.
    """

    n_tokens: int
    _batch: Any  # Llama's own, or _Closed

    def __init__(self, model_path: str | Path, **options: Any) -> None:
        if unknown := sorted(options.keys() - KNOWN):
            warnings.warn(f"llama_cpp.Llama has no {', '.join(unknown)}: ignored", UserWarning, stacklevel=3)
        if Path(model_path).is_file():  # else Llama says that it is missing
            with Header(model_path) as header:
                refuse_what_ends(header)
        library.start()  # first: Llama's own start would leave llama.cpp's log to llama-cpp-python
        library.set_verbose(options.get("verbose", True))
        if options.get("draft_model") is not None:
            options["logits_all"] = True  # Llama too keeps every row then, but in an array of n_batch rows
        self._outside, self._told = "", False  # what a reader of `ctx` misses; whether one was told
        self._wanted = _Wanted()
        super().__init__(str(model_path), **options)
        self._batch.set_batch = self._wanted.around(self._batch.set_batch)

    @property
    def ctx(self) -> Any:
        """llama.cpp's context. Code outside llama-cpp-python that decodes with it goes past eval(): one warning."""
        if self._outside and not self._told:
            reader = sys._getframe(1).f_globals.get("__name__", "")
            if not reader.startswith("llama_cpp"):
                self._told = True
                warnings.warn(self._outside, RuntimeWarning, stacklevel=2)
        return self._ctx.ctx

    @property
    def held(self) -> list[int]:
        """The token ids that the context holds."""
        tokens: list[int] = self.input_ids[: self.n_tokens].tolist()
        return tokens

    def decode(self, tokens: Sequence[int], *, every_row: bool = False) -> Row:
        """Decode 1 to n_batch tokens after those that are held, as `Llama.eval` does.

        Returns the logits after the last of them, float32 [1, n_vocab], or after each, [tokens, n_vocab], where
        `every_row` asks for that or `logits_all` does. It is llama.cpp's buffer, valid until the next decode. Raises
        RuntimeError where llama.cpp refuses, for instance beyond the context; nothing more is held then.
        """
        self._wanted.every_row = every_row
        super().eval(tokens)
        n_rows = len(tokens) if every_row or self._logits_all else 1
        logits = llama_cpp.llama_get_logits_ith(self._ctx.ctx, -n_rows)
        if not logits:
            raise DecodeError(f"{self.model_path}: llama.cpp kept no logits of {n_rows} rows")
        rows: Row = np.ctypeslib.as_array(logits, shape=(n_rows, self._n_vocab))
        return rows

    def keep_scores(self, rows: Row) -> None:
        """Put the last rows, changed since decode(), where `logprobs` and stopping criteria read them."""
        if self._logits_all:
            self.scores[self.n_tokens - len(rows) : self.n_tokens] = rows

    def give_back(self, length: int) -> None:
        """Hold the first `length` tokens only; `generate` decodes at least one token before it samples again."""
        if length < self.n_tokens and (self._is_recurrent or self._is_hybrid):
            self.reset()  # such a state has no earlier one to go back to
        self.n_tokens = min(length, self.n_tokens)
        self._requires_eval = True

    def limit(self, n_ctx: int | None) -> None:
        """Let completions end at `n_ctx` tokens; None: at the context's end."""
        own = super().n_ctx()
        self._n_ctx: int = own if n_ctx is None else min(own, n_ctx)

    def n_ctx(self) -> int:
        """The tokens that a text may have."""
        return getattr(self, "_n_ctx", None) or int(super().n_ctx())

    def load_options(self, *, force: bool = False) -> LoadOptions:
        """What another model needs to run beside this one in the same manner."""
        params = self.context_params
        types = {number: name for name, number in CACHE_TYPES.items()}
        return LoadOptions(
            n_ctx=super().n_ctx(), n_batch=self.n_batch,
            n_gpu_layers=min(self.model_params.n_gpu_layers, LoadOptions.n_gpu_layers),
            threads=min(self.n_threads, MAX_THREADS), threads_batch=min(self.n_threads_batch, MAX_THREADS),
            flash_attn="on" if params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED else "off",
            cache_type_k=types[params.type_k], cache_type_v=types[params.type_v], force=force,
        )  # fmt: skip

    def close(self) -> None:
        """Free the model and its context. What needs them then raises DecodeError; `Llama` would end the process."""
        if hasattr(self, "_stack"):  # __init__ came so far
            super().close()
            self._model = self._ctx = self._batch = self.tokenizer_ = _Closed(self.model_path)


class _Closed:
    """Stands where a Llama had what it freed."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        raise DecodeError(f"{self._path} is closed; open it again")


class _Wanted:
    """Whether the next decode computes the logits of every row. Holds no Llama, so that no circle keeps one alive."""

    def __init__(self) -> None:
        self.every_row = False

    def around(self, set_batch: Callable[..., None]) -> Callable[..., None]:
        def set_rows(batch: Sequence[int], n_past: int, logits_all: bool) -> None:
            set_batch(batch=batch, n_past=n_past, logits_all=logits_all or self.every_row)

        return set_rows
