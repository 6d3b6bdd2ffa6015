"""llama.cpp: open a GGUF, tokenize, decode, read rows of logits, roll back, close.

The only module that calls llama.cpp's model and context API (sampling.py calls its sampler API). It guards every call
that would abort the process: sizes, token ids and vocabularies are checked here. Knows nothing of mixing.
"""

import ctypes
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from memdec_edge.errors import Cancelled, ContextError, CorpusError, DecodeError, ModelFileError
from memdec_edge.header import Header
from memdec_edge.interrupt import AbortFlag
from memdec_edge.options import CACHE_TYPES, LoadOptions

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
VOCAB_TYPE_NONE = 0  # enum llama_vocab_type; tokenizing without a vocabulary aborts the process
LOG_ERROR = 4  # enum ggml_log_level; llama-cpp-python's own table is off by one

_log: deque[str] = deque(maxlen=40)  # llama.cpp's last errors: the reasons of the errors raised here
_verbose = False
Row = npt.NDArray[np.float32]


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def _on_log(level: int, text: bytes, user_data: Any) -> None:
    line = text.decode("utf-8", "replace")
    if _verbose:
        sys.stderr.write(line)
    if level == LOG_ERROR and line.strip():
        _log.append(line.strip())


@cache
def _start() -> None:
    """Before the first model: take over llama.cpp's log, start its backends."""
    llama_cpp.llama_log_set(_on_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def set_verbose(verbose: bool) -> None:
    """Show llama.cpp's log on stderr, or keep it silent (the default)."""
    global _verbose
    _verbose = verbose


def _reason(fallback: str) -> str:
    """The most telling line of llama.cpp's log since it was last cleared, without its function names."""
    telling = [line for line in _log if "error loading model" in line or "invalid" in line] or list(_log)
    if not telling:
        return fallback
    line = telling[0]
    for mark in ("error loading model: ", "llama_init_from_model: ", "gguf_init_from_file_ptr: "):
        line = line.split(mark)[-1]
    return " ".join(line.split())


def default_threads() -> int:
    """One thread for each CPU that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refuse_what_aborts(header: Header) -> None:
    """Raise ModelFileError for a vocabulary with which llama.cpp would end the process (GGML_ASSERT)."""
    if "tokenizer.ggml.tokens" not in header.entries:
        return  # llama.cpp refuses it by itself, or it has no tokenizer
    seen: set[bytes] = set()
    for token, text in enumerate(header.strings("tokenizer.ggml.tokens")):
        text = text.partition(b"\0")[0]  # llama.cpp reads C strings
        if text in seen:
            raise ModelFileError(header.path, f"its token {token} stands in the vocabulary twice; the file is damaged")
        if text:  # llama.cpp names empty ones by their number
            seen.add(text)


class Model:
    """A GGUF file: its vocabulary and metadata, and its weights unless `vocab_only`.

    Raises MissingFileError, and ModelFileError when llama.cpp cannot load the file or it is no text decoder.
    """

    def __init__(self, path: Path | str, *, vocab_only: bool = False, n_gpu_layers: int = 0) -> None:
        self.path = Path(path)
        self._handle = None
        with Header(self.path) as header:
            _refuse_what_aborts(header)
        _start()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = n_gpu_layers
        _log.clear()
        self._handle = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self._handle:
            raise ModelFileError(self.path, f"llama.cpp cannot load it ({_reason('no reason given')})")
        self._vocab = llama_cpp.llama_model_get_vocab(self._handle)
        if llama_cpp.llama_vocab_type(self._vocab) == VOCAB_TYPE_NONE:
            self.close()
            raise ModelFileError(self.path, "it has no tokenizer; convert it again with one (--base)")
        if not vocab_only and not llama_cpp.llama_model_has_decoder(self._handle):
            self.close()
            raise ModelFileError(self.path, "it is no decoder; only models that generate text can be used")
        if not vocab_only and llama_cpp.llama_model_n_ctx_train(self._handle) < 1:
            self.close()
            raise ModelFileError(self.path, "its context_length is no positive number; the file is damaged")
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self._handle)
        self.add_bos: bool = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        self.add_eos: bool = llama_cpp.llama_vocab_get_add_eos(self._vocab)
        self.bos: int = llama_cpp.llama_vocab_bos(self._vocab)  # -1: none
        self.eos: int = llama_cpp.llama_vocab_eos(self._vocab)
        self._piece_buffer = ctypes.create_string_buffer(256)

    @property
    def handle(self) -> Any:
        """llama.cpp's `llama_model *`."""
        return self._handle

    @property
    def vocab(self) -> Any:
        """llama.cpp's `llama_vocab *`."""
        return self._vocab

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Every scalar key of the GGUF as llama.cpp prints it (arrays are left out)."""
        found: dict[str, str] = {}
        for index in range(llama_cpp.llama_model_meta_count(self._handle)):
            key = self._meta_string(llama_cpp.llama_model_meta_key_by_index, index)
            found[key] = self._meta_string(llama_cpp.llama_model_meta_val_str_by_index, index)
        return found

    def _meta_string(self, read: Any, index: int) -> str:
        size = read(self._handle, index, ctypes.create_string_buffer(1), 1)
        buffer = ctypes.create_string_buffer(max(size, 0) + 1)
        read(self._handle, index, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @cached_property
    def eog_tokens(self) -> frozenset[int]:
        """Ids that end generation (end of text, end of turn)."""
        is_eog = llama_cpp.llama_vocab_is_eog
        return frozenset(token for token in range(self.n_vocab) if is_eog(self._vocab, token))

    def token_text(self, token: int) -> bytes:
        """The vocabulary's own spelling of a token id in [0, n_vocab)."""
        if not 0 <= token < self.n_vocab:
            raise DecodeError(f"token {token} is outside the vocabulary of {self.path} ({self.n_vocab} tokens)")
        return llama_cpp.llama_vocab_get_text(self._vocab, token) or b""

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`; BOS and EOS as the vocabulary says, special tokens by name where `parse_special`."""
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:  # lone surrogates: bytes of the command line that were not UTF-8
            raise CorpusError("the text", f"not UTF-8 at character {error.start}; convert it to UTF-8") from error
        size = len(data) + 8
        while True:  # twice at most: a negative count says how many there are
            buffer = (llama_cpp.llama_token * size)()
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, size, add_special, parse_special)
            if count >= 0:
                return list(buffer[:count])
            size = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """UTF-8 bytes of one token, possibly an incomplete character; special tokens are empty unless asked for."""
        if not 0 <= token < self.n_vocab:
            raise DecodeError(f"token {token} is outside the vocabulary of {self.path} ({self.n_vocab} tokens)")
        buffer = self._piece_buffer
        count = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            self._piece_buffer = ctypes.create_string_buffer(-count)
            return self.piece(token, special=special)
        return buffer.raw[:count]

    def close(self) -> None:
        """Free the weights. Contexts must be closed first."""
        if self._handle:
            llama_cpp.llama_model_free(self._handle)
            self._handle = None


class Context:
    """One KV cache of a model and the token ids in it. One timeline; not for several threads at once."""

    def __init__(self, model: Model, options: LoadOptions, n_ctx: int, abort: AbortFlag | None = None) -> None:
        """`n_ctx` cells; `abort` may be shared with other contexts, so that whichever decodes is stopped.

        Raises ModelFileError when llama.cpp cannot make the context (memory, cache types).
        """
        self.model = model
        self.tokens: list[int] = []
        self._handle = None
        self._abort = abort or AbortFlag()
        threads = options.threads or default_threads()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = min(options.n_batch, n_ctx)
        params.n_threads = threads
        params.n_threads_batch = options.threads_batch or threads
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attn]
        params.type_k = CACHE_TYPES[options.cache_type_k]
        params.type_v = CACHE_TYPES[options.cache_type_v]
        params.abort_callback = ctypes.cast(self._abort.callback, llama_cpp.ggml_abort_callback)
        params.abort_callback_data = self._abort.data
        _log.clear()
        self._handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise ModelFileError(
                model.path, f"no context of {n_ctx} tokens could be made ({_reason('out of memory?')})"
            )
        self.n_ctx: int = llama_cpp.llama_n_ctx(self._handle)
        self.n_batch: int = llama_cpp.llama_n_batch(self._handle)
        self._cells = llama_cpp.llama_get_memory(self._handle)
        self._row_type = ctypes.c_float * model.n_vocab
        self._allocate_batch()

    def _allocate_batch(self) -> None:
        """Point a llama_batch at NumPy arrays: one sequence, id 0."""
        n = self.n_batch
        self._ids, self._positions = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self._wanted, self._one, self._seq = np.zeros(n, np.int8), np.ones(n, np.int32), np.zeros(1, np.int32)
        self._seqs = np.full(n, self._seq.ctypes.data, np.uintp)
        types = dict(llama_cpp.llama_batch._fields_)

        def pointer(array: npt.NDArray[Any], field: str) -> Any:
            return ctypes.cast(array.ctypes.data, types[field])

        self._batch = llama_cpp.llama_batch(
            n_tokens=0,
            token=pointer(self._ids, "token"),
            pos=pointer(self._positions, "pos"),
            n_seq_id=pointer(self._one, "n_seq_id"),
            seq_id=pointer(self._seqs, "seq_id"),
            logits=pointer(self._wanted, "logits"),
        )

    def feed(self, tokens: list[int]) -> Row:
        """Make the KV cache hold `tokens` and return the logits after the last one, float32 [n_vocab].

        What the cache shares with `tokens` from the start is kept; the rest is decoded in batches of n_batch. The row
        is a view of llama.cpp's buffer, valid until the next decode. Raises ContextError when there are more tokens
        than cells, Cancelled on Ctrl-C or cancel(), DecodeError when llama.cpp refuses.
        """
        if not tokens:
            raise DecodeError(f"{self.model.path}: nothing to decode; give at least one token")
        self.truncate(min(self._shared(tokens), len(tokens) - 1))
        for start in range(len(self.tokens), len(tokens), self.n_batch):
            chunk = tokens[start : start + self.n_batch]
            self._decode(chunk, every_row=False)
        return self.row(-1)

    def feed_rows(self, tokens: Sequence[int]) -> Iterator[Row]:
        """Decode `tokens` after what the cache holds; yield the logits after each, in order, as feed() does."""
        for start in range(0, len(tokens), self.n_batch):
            chunk = tokens[start : start + self.n_batch]
            self._decode(chunk, every_row=True)
            for index in range(len(chunk)):
                yield self.row(index)

    def _shared(self, tokens: list[int]) -> int:
        """How many tokens from the start the cache shares with `tokens`."""
        held = len(self.tokens)
        if tokens[:held] == self.tokens:  # the usual case, without a Python loop
            return held
        length = 0
        for mine, theirs in zip(self.tokens, tokens, strict=False):
            if mine != theirs:
                break
            length += 1
        return length

    def _decode(self, chunk: Sequence[int], *, every_row: bool) -> None:
        start, count = len(self.tokens), len(chunk)
        if start + count > self.n_ctx:
            raise ContextError(start + count, 0, self.n_ctx)
        ids = np.asarray(chunk, np.int64)
        if ids.min() < 0 or ids.max() >= self.model.n_vocab:
            raise DecodeError(f"{self.model.path}: a token id is outside its vocabulary of {self.model.n_vocab}")
        self._ids[:count] = ids
        self._positions[:count] = np.arange(start, start + count)
        self._wanted[:count] = every_row
        self._wanted[count - 1] = 1
        self._batch.n_tokens = count
        _log.clear()
        status = llama_cpp.llama_decode(self._handle, self._batch)
        if status == 0:
            self.tokens.extend(int(token) for token in chunk)
            return
        self.truncate(start)  # whatever part of the batch was done is not wanted
        if self._abort.take():
            raise Cancelled()
        raise DecodeError(f"{self.model.path}: llama.cpp could not decode {count} tokens at position {start} "
                          f"(status {status}: {_reason('no reason given')})")  # fmt: skip

    def row(self, index: int) -> Row:
        """Logits of a decoded batch's row, float32 [n_vocab], a view; rows without logits would abort: not offered."""
        address = ctypes.cast(llama_cpp.llama_get_logits_ith(self._handle, index), ctypes.c_void_p).value
        if address is None:
            raise DecodeError(f"{self.model.path}: llama.cpp kept no logits of row {index}")
        return np.frombuffer(memoryview(self._row_type.from_address(address)).cast("B"), np.float32)

    def truncate(self, length: int) -> None:
        """Roll the KV cache back to its first `length` tokens; a cache that cannot is emptied (feed() refills it)."""
        if not llama_cpp.llama_memory_seq_rm(self._cells, 0, length, -1):
            llama_cpp.llama_memory_clear(self._cells, True)
            length = 0
        del self.tokens[length:]

    def cancel(self) -> None:
        """Stop a decode that runs in another thread: it raises Cancelled."""
        self._abort.set()

    def close(self) -> None:
        """Free the KV cache."""
        if self._handle:
            llama_cpp.llama_free(self._handle)
            self._handle = None
