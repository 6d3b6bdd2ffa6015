"""llama.cpp's models: open a GGUF, read its metadata, tokenize, close; and its quantiser.

This module and context.py are the only ones that call llama.cpp's model and context API (sampling.py calls its sampler
API). They guard every call that would abort the process: sizes, token ids and vocabularies are checked here. Knows
nothing of decoding and mixing.
"""

import ctypes
import os
import sys
from collections import deque
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import llama_cpp

from memdec_edge.errors import CorpusError, DecodeError, ModelFileError
from memdec_edge.gguf.header import Header
from memdec_edge.gguf.vocab_guard import refuse_what_aborts

VOCAB_TYPE_NONE = 0  # enum llama_vocab_type; tokenizing without a vocabulary aborts the process
QUANT_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}  # llama-quantize's
TELLING = ("error loading model", "failed to quantize", "invalid")  # in lines of llama.cpp's log that give a reason
LOG_ERROR = 4  # enum ggml_log_level; llama-cpp-python's own table is off by one

_log: deque[str] = deque(maxlen=40)  # llama.cpp's last errors: the reasons of the errors raised here
_verbose = False


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


def has_gpu() -> bool:
    """Whether llama-cpp-python was built for a GPU and one is there."""
    _start()
    return bool(llama_cpp.llama_supports_gpu_offload())


def forget_reasons() -> None:
    """Before a call whose failure reason() is to explain."""
    _log.clear()


def reason(fallback: str) -> str:
    """The most telling line of llama.cpp's log since it was last cleared, without its function names."""
    telling = [line for line in _log if any(mark in line for mark in TELLING)] or list(_log)
    if not telling:
        return fallback
    line = telling[0]
    for mark in (
        "error loading model: ",
        "failed to quantize: ",
        "llama_init_from_model: ",
        "gguf_init_from_file_ptr: ",
    ):
        line = line.split(mark)[-1]
    return " ".join(line.split())


class Model:
    """A GGUF file: its vocabulary and metadata, and its weights unless `vocab_only`.

    Raises MissingFileError, and ModelFileError when llama.cpp cannot load the file or it is no text decoder.
    """

    def __init__(self, path: Path | str, *, vocab_only: bool = False, n_gpu_layers: int = 0) -> None:
        self.path = Path(path)
        self._handle = None
        with Header(self.path) as header:
            refuse_what_aborts(header)
        _start()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = n_gpu_layers
        forget_reasons()
        self._handle = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self._handle:
            raise ModelFileError(self.path, f"llama.cpp cannot load it ({reason('no reason given')})")
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
        self.n_embd: int = llama_cpp.llama_model_n_embd(self._handle)  # as n_ctx_train and n_layer 0 where vocab_only
        self.n_layer: int = llama_cpp.llama_model_n_layer(self._handle)
        self.add_bos: bool = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        self.add_eos: bool = llama_cpp.llama_vocab_get_add_eos(self._vocab)
        self.bos: int = llama_cpp.llama_vocab_bos(self._vocab)  # -1: none
        self.eos: int = llama_cpp.llama_vocab_eos(self._vocab)
        self._piece_buffer = ctypes.create_string_buffer(256)

    @property
    def handle(self) -> Any:
        """llama.cpp's `llama_model *`. Raises DecodeError after close(), as everything does that needs it."""
        if not self._handle:
            raise DecodeError(f"{self.path} is closed; open it again")
        return self._handle

    @property
    def vocab(self) -> Any:
        """llama.cpp's `llama_vocab *`. Raises DecodeError after close()."""
        if not self._handle:
            raise DecodeError(f"{self.path} is closed; open it again")
        return self._vocab

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Every scalar key of the GGUF as llama.cpp prints it (arrays are left out)."""
        found: dict[str, str] = {}
        for index in range(llama_cpp.llama_model_meta_count(self.handle)):
            key = self._meta_string(llama_cpp.llama_model_meta_key_by_index, index)
            found[key] = self._meta_string(llama_cpp.llama_model_meta_val_str_by_index, index)
        return found

    def _meta_string(self, read: Any, index: int) -> str:
        size = read(self.handle, index, ctypes.create_string_buffer(1), 1)
        buffer = ctypes.create_string_buffer(max(size, 0) + 1)
        read(self.handle, index, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @cached_property
    def eog_tokens(self) -> frozenset[int]:
        """Ids that end generation (end of text, end of turn)."""
        is_eog = llama_cpp.llama_vocab_is_eog
        return frozenset(token for token in range(self.n_vocab) if is_eog(self.vocab, token))

    def token_text(self, token: int) -> bytes:
        """The vocabulary's own spelling of a token id in [0, n_vocab)."""
        if not 0 <= token < self.n_vocab:
            raise DecodeError(f"token {token} is outside the vocabulary of {self.path} ({self.n_vocab} tokens)")
        return llama_cpp.llama_vocab_get_text(self.vocab, token) or b""

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`; BOS and EOS as the vocabulary says, special tokens by name where `parse_special`."""
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:  # lone surrogates: bytes of the command line that were not UTF-8
            raise CorpusError("the text", f"not UTF-8 at character {error.start}; convert it to UTF-8") from error
        size = len(data) + 8
        while True:  # twice at most: a negative count says how many there are
            buffer = (llama_cpp.llama_token * size)()
            count = llama_cpp.llama_tokenize(self.vocab, data, len(data), buffer, size, add_special, parse_special)
            if count >= 0:
                return list(buffer[:count])
            size = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """UTF-8 bytes of one token, possibly an incomplete character; special tokens are empty unless asked for."""
        if not 0 <= token < self.n_vocab:
            raise DecodeError(f"token {token} is outside the vocabulary of {self.path} ({self.n_vocab} tokens)")
        buffer = self._piece_buffer
        count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            self._piece_buffer = ctypes.create_string_buffer(-count)
            return self.piece(token, special=special)
        return buffer.raw[:count]

    def close(self) -> None:
        """Free the weights. Contexts must be closed first."""
        if self._handle:
            llama_cpp.llama_model_free(self._handle)
            self._handle = None


def run_quantizer(source: str, target: str, outtype: str, embedding: str, head: str, allow_requantize: str) -> None:
    """Quantise a GGUF with llama.cpp, and end this process: 0, or 1 and the reason on stdout.

    Meant for a process of its own (convert/quantize.py says why). `outtype` is of options.QUANT_TYPES, `embedding` and
    `head` of options.TENSOR_TYPES or empty for llama.cpp's choice, `allow_requantize` 0 or 1.
    """
    from gguf.constants import GGMLQuantizationType

    _start()
    params = llama_cpp.llama_model_quantize_default_params()
    name = QUANT_ALIASES.get(outtype, outtype).upper()
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_ALL_F32" if outtype == "f32" else f"LLAMA_FTYPE_MOSTLY_{name}")
    params.allow_requantize = allow_requantize == "1"
    if embedding:
        params.token_embedding_type = GGMLQuantizationType[embedding.upper()]
    if head:
        params.output_tensor_type = GGMLQuantizationType[head.upper()]
    failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), params)
    if failed:
        print(reason("no reason given"))
    sys.exit(failed)
