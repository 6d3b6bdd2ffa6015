"""llama.cpp's models: Model opens a GGUF, tells its metadata and tokenizes; run_quantizer() calls the quantiser.

Beside context.py this is the only module that calls llama.cpp's model and context API. It checks beforehand what would
end the process: token ids, texts, vocabularies. Knows nothing of decoding and mixing.
"""

import ctypes
import os
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp

from memdec_edge.errors import CorpusError, DecodeError, ModelFileError, RoleError
from memdec_edge.gguf import guard
from memdec_edge.gguf.header import Header, Scalar
from memdec_edge.gguf.metadata import is_index, single_values
from memdec_edge.llama import library
from memdec_edge.llama.library import Owned
from memdec_edge.llama.stack import call_with_stack, refuse_long_runs, stack_for
from memdec_edge.llama.trial import refuse_what_ends

VOCAB_TYPE_NONE = 0  # enum llama_vocab_type; tokenizing without a vocabulary aborts the process
QUANT_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}  # llama-quantize's
MAX_BYTES = 2**31 - 1  # of a text: llama.cpp counts them in 32 bits
MAX_NAMES = 20_000  # of control tokens in one text; llama.cpp's time grows with their square, 3 s for so many
LONG = 100_000  # characters of a text that may hold so many
PIECE_BYTES = 256  # most pieces are shorter
ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")  # names of tokens that end generation


class Model:
    """A GGUF file: its vocabulary and metadata, and its weights unless `vocab_only`.

    Several threads may use it at the same time, and close it: the weights are freed when no call and no context needs
    them any more. Raises MissingFileError, RoleError for a document index, and ModelFileError when llama.cpp cannot
    load the file or it is no text decoder. Some files are tried first in a process of their own (trial.py). That
    process itself opens them as `tried`.

    metadata: every single value of the header, with the type that the file gives it (arrays are left out).
    n_embd, n_layer, n_ctx_train: of the weights, 0 where vocab_only.
    bos, eos: ids that begin and end a document, -1 where the file has none; add_bos, add_eos: whether tokenize() adds
    them. llama.cpp takes token 11 or 2 for one that a file leaves out. Such an id counts only where the vocabulary
    calls the token a control token, as SentencePiece's <s> and </s>.
    """

    def __init__(
        self, path: Path | str, *, vocab_only: bool = False, n_gpu_layers: int = 0, tried: bool = False
    ) -> None:
        self.path = Path(path)
        self._weights: _Weights | None = None
        self._pieces: dict[tuple[int, bool], bytes] = {}
        with Header(self.path) as header:
            if is_index(header.scalars()):
                raise RoleError(self.path, "document index", "model", "give it as `memory`, beside a base")
            refuse = guard.refuse_what_aborts if tried else refuse_what_ends
            refuse(header, vocab_only=vocab_only)
            self.metadata: dict[str, Scalar] = single_values(header)
        library.start()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = n_gpu_layers
        library.forget_reasons()
        handle = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
        if not handle:
            raise ModelFileError(self.path, f"llama.cpp cannot load it ({library.reason('no reason given')})")
        weights = _Weights(handle)
        vocab = weights.vocab
        if llama_cpp.llama_vocab_type(vocab) == VOCAB_TYPE_NONE:
            raise ModelFileError(self.path, "it has no tokenizer; convert it again with that of a `base`")
        if not vocab_only and not llama_cpp.llama_model_has_decoder(handle):
            raise ModelFileError(self.path, "it is no decoder; only models that generate text can be used")
        self._weights = weights
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(vocab)
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(handle)
        self.n_embd: int = llama_cpp.llama_model_n_embd(handle)
        self.n_layer: int = llama_cpp.llama_model_n_layer(handle)
        self.bos = self._known(llama_cpp.llama_vocab_bos(vocab), "bos")
        self.eos = self._known(llama_cpp.llama_vocab_eos(vocab), "eos")
        adds = (llama_cpp.llama_vocab_get_add_bos(vocab), llama_cpp.llama_vocab_get_add_eos(vocab))
        self.add_bos: bool = adds[0] and self.bos >= 0
        self.add_eos: bool = adds[1] and self.eos >= 0
        self._adds_by_itself = adds == (self.add_bos, self.add_eos)  # else llama.cpp would add a token that is none

    @property
    def weights(self) -> "_Weights":
        """llama.cpp's model and its vocabulary; nothing frees them while a reference is held.

        Raises DecodeError after close(), as everything does that needs them.
        """
        weights = self._weights
        if not weights:
            raise DecodeError(f"{self.path} is closed; open it again")
        return weights

    @property
    def handle(self) -> Any:
        """llama.cpp's `llama_model *`, valid until close()."""
        return self.weights.pointer

    @property
    def vocab(self) -> Any:
        """llama.cpp's `llama_vocab *`, valid until close()."""
        return self.weights.vocab

    @property
    def head_length(self) -> int:
        """Numbers of a head's key; 0 without attention."""
        found = self.metadata.get(f"{self.metadata.get('general.architecture')}.attention.key_length")
        weights = self.weights
        heads: int = llama_cpp.llama_model_n_head(weights.pointer)
        return found if isinstance(found, int) else self.n_embd // heads if heads else 0

    @cached_property
    def eog_tokens(self) -> frozenset[int]:
        """Ids that end generation (end of text, end of turn)."""
        weights, is_eog = self.weights, llama_cpp.llama_vocab_is_eog
        found = (token for token in range(self.n_vocab) if is_eog(weights.vocab, token))
        return frozenset(token for token in found if self._known(token, *ENDS) >= 0)

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of every token, control tokens by their names; read once, 75 ms for 49,000 tokens."""
        return [self.piece(token, special=True) for token in range(self.n_vocab)]

    def is_control(self, token: int) -> bool:
        """Return whether a token id in [0, n_vocab) is a control token, which stands for no text."""
        self._check(token)
        weights = self.weights
        return bool(llama_cpp.llama_vocab_is_control(weights.vocab, token))

    def token_text(self, token: int) -> bytes:
        """Return the vocabulary's own spelling of a token id in [0, n_vocab)."""
        self._check(token)
        weights = self.weights
        return llama_cpp.llama_vocab_get_text(weights.vocab, token) or b""

    def token_of(self, name: str) -> int | None:
        """Return the id of the one token that `name`, such as <|im_end|>, is read as; None where it is none or many."""
        ids = self.tokenize(name, add_special=False)
        return ids[0] if len(ids) == 1 else None

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the token ids of `text`.

        add_special: begin with `bos` and end with `eos` where the vocabulary asks for that (add_bos, add_eos).
        parse_special: a name of a control token (`<|im_end|>`) becomes that token, which suits prompts. Otherwise it is
        plain text, which suits documents and text from strangers.

        Raises CorpusError for text that is no UTF-8, for runs of over a million characters without a break (stack.py)
        and for too many names, and MemoryLimitError where the system gives no stack for a long text.
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:  # lone surrogates: bytes of the command line that were not UTF-8
            raise CorpusError("the text", f"not UTF-8 at character {error.start}; convert it to UTF-8") from error
        if len(data) > MAX_BYTES:
            raise CorpusError("the text", f"{len(data):,} bytes, more than {MAX_BYTES:,}; divide it")
        if parse_special and len(text) > LONG:
            self._refuse_many_names(text)
        refuse_long_runs(text, str(self.metadata.get("tokenizer.ggml.pre", "default")))
        weights, by_itself = self.weights, add_special and self._adds_by_itself
        ids = call_with_stack(lambda: _tokenize(weights, data, by_itself, parse_special), stack_for(text))
        if add_special and not by_itself:
            return [self.bos] * self.add_bos + ids + [self.eos] * self.add_eos
        return ids

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each document: special tokens neither added nor parsed. Errors: see tokenize()."""
        return [self.tokenize(text, add_special=False, parse_special=False) for text in texts]

    def prompt_warning(self, tokens: list[int]) -> str:
        """Return a warning for a person where a prompt begins with BOS twice, added and typed; else an empty string."""
        if self.add_bos and tokens[:2] == [self.bos, self.bos]:
            name = self.token_text(self.bos).decode("utf-8", "replace")
            return f"the prompt begins with {name} twice: the model adds one by itself; leave out the one that is typed"
        return ""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the UTF-8 bytes of one token, possibly an incomplete character; control tokens have none by default.

        special: give control tokens by their names.
        """
        found = self._pieces.get((token, special))
        if found is None:
            self._check(token)
            found = self._pieces[token, special] = _piece(self.weights, token, special)
        return found

    def _refuse_many_names(self, text: str) -> None:
        counts = {name: text.count(name) for name in self._control_names}
        if sum(counts.values()) > MAX_NAMES:
            most = max(counts, key=counts.__getitem__)
            reason = f"it names control tokens such as {most} over {MAX_NAMES:,} times"
            raise CorpusError("the text", f"{reason}; divide it, or tokenize it without parse_special")

    @cached_property
    def _control_names(self) -> list[str]:
        controls = (token for token in range(self.n_vocab) if self.is_control(token))
        return [name for token in controls if (name := self.token_text(token).decode("utf-8", "replace"))]

    def _check(self, token: int) -> None:
        if not 0 <= token < self.n_vocab:
            raise DecodeError(f"token {token} is outside the vocabulary of {self.path} ({self.n_vocab} tokens)")

    def _known(self, token: int, *names: str) -> int:
        """Return `token` where the file gives it one of these names or calls it a control token, else -1."""
        named = any(self.metadata.get(f"tokenizer.ggml.{name}_token_id") == token for name in names)
        return token if token >= 0 and (named or self.is_control(token)) else -1

    def close(self) -> None:
        """Give the weights back, see Model."""
        self._weights = None


class _Weights(Owned):
    """llama.cpp's model; `vocab` is its `llama_vocab *`."""

    def __init__(self, pointer: Any) -> None:
        super().__init__(pointer, llama_cpp.llama_model_free)
        self.vocab: Any = llama_cpp.llama_model_get_vocab(pointer)


def _tokenize(weights: _Weights, data: bytes, add_special: bool, parse_special: bool) -> list[int]:
    size = len(data) + 8
    while True:  # twice at most: a negative count says how many there are
        buffer = (llama_cpp.llama_token * size)()
        count = llama_cpp.llama_tokenize(weights.vocab, data, len(data), buffer, size, add_special, parse_special)
        if count >= 0:
            return list(buffer[:count])
        size = -count


def _piece(weights: _Weights, token: int, special: bool) -> bytes:
    size = PIECE_BYTES
    while True:  # twice at most: a negative count says how many bytes there are
        buffer = ctypes.create_string_buffer(size)
        count = llama_cpp.llama_token_to_piece(weights.vocab, token, buffer, size, 0, special)
        if count >= 0:
            return buffer.raw[:count]
        size = -count


def run_quantizer(source: str, target: str, outtype: str, embedding: str, head: str, allow_requantize: str) -> None:
    """Quantise a GGUF with llama.cpp, and end this process: 0, or 1 and the reason on stdout.

    Meant for a process of its own (convert/quantize.py says why). `outtype` is of options.QUANT_TYPES, `embedding` and
    `head` of options.TENSOR_TYPES or empty for llama.cpp's choice, `allow_requantize` 0 or 1.
    """
    from gguf.constants import GGMLQuantizationType

    library.start()
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
        print(library.reason("no reason given"))
    sys.exit(failed)
