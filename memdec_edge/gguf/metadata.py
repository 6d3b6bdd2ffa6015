"""What a memory says about itself: the `memdec_edge.*` keys of its GGUF, read, checked and patched.

The names stand here and nowhere else. Values that are learned after conversion (lambda, temperature, gate,
perplexities) are fixed-size f32 placeholders, NaN for "not set", so that they are patched in place without rewriting
the file. The gate is eight single keys and not one array, since llama.cpp gives no arrays to those who read metadata
through it.
Knows nothing of models, mixing or how the values are found.
"""

import hashlib
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from memdec_edge.errors import ModelFileError
from memdec_edge.gguf.header import FLOAT32, Header, Scalar, TensorInfo

PREFIX = "memdec_edge."
SCHEMA = 1
SCHEMA_VERSION = "memdec_edge.schema_version"
ROLE = "memdec_edge.role"
DOMAIN = "memdec_edge.domain"
LAMBDA = "memdec_edge.lambda"
TEMPERATURE = "memdec_edge.temperature"
TOKENIZER_SHA256 = "memdec_edge.tokenizer.sha256"
TOKENIZER_N_TOKENS = "memdec_edge.tokenizer.n_tokens"
TRAIN = "memdec_edge.train."  # beta, k, knn_temperature, key, target, teacher, epochs, tokens
EVAL_DATASET = "memdec_edge.eval.dataset"
PPL_BASE = "memdec_edge.eval.ppl_base"
PPL_MEMORY = "memdec_edge.eval.ppl_memory"
PPL_MIXTURE = "memdec_edge.eval.ppl_fused"
CHECKPOINT_METADATA = "memdec.json"  # of a checkpoint folder: what training wants convert to put into the GGUF
GATE_SIZE = 8
GATE = tuple(f"memdec_edge.gate.weight_{i}" for i in range(GATE_SIZE))

TEMPERATURES = (0.01, 100.0)  # llama.cpp prints metadata with six decimals: smaller ones would lose digits
PERPLEXITIES = (PPL_BASE, PPL_MEMORY, PPL_MIXTURE)
PLACEHOLDERS: dict[str, float] = {
    LAMBDA: math.nan,
    TEMPERATURE: 1.0,
    **dict.fromkeys(GATE, math.nan),
    **dict.fromkeys(PERPLEXITIES, math.nan),
}  # what convert writes and patch() may change, in this order, side by side in the file


@dataclass(frozen=True)
class MemoryMetadata:
    """The `memdec_edge.*` keys of a GGUF; a GGUF without them is a model with schema version 0."""

    schema_version: int = 0
    role: str = "model"  # "memory" or "model"
    domain: str = ""
    weight: float | None = None  # recommended lambda in [0, 1]; None: no recommendation
    temperature: float = 1.0  # divides the memory's logits before mixing; in TEMPERATURES
    tokenizer_sha256: str = ""
    tokenizer_n_tokens: int | None = None
    train: Mapping[str, str] | None = None  # how it was trained, by the key's last part
    eval_dataset: str = ""
    ppl_base: float | None = None
    ppl_memory: float | None = None
    ppl_mixture: float | None = None
    gate: tuple[float, ...] | None = None  # GATE_SIZE weights; None: not fitted

    @classmethod
    def from_gguf(cls, path: Path | str, meta: Mapping[str, object]) -> "MemoryMetadata":
        """Facts from all keys of a GGUF, values as llama.cpp prints them or as read() gives them.

        Raises ModelFileError, naming `path`, key and value, where a value is no number, is outside its range, or was
        written by a later schema.
        """
        version = _whole(meta, SCHEMA_VERSION, path) or 0
        if version > SCHEMA:
            raise ModelFileError(
                path, f"{SCHEMA_VERSION} is {version}, this version knows {SCHEMA}; update memdec-edge"
            )
        role = str(meta.get(ROLE, "model"))
        if role not in ("memory", "model"):
            raise ModelFileError(path, f"{ROLE} is {role!r}; it must be memory or model")
        weights = tuple(_float(meta, key, path) for key in GATE)
        if any(weight is None for weight in weights) and any(weight is not None for weight in weights):
            raise ModelFileError(path, f"only some of {GATE[0]} ... {GATE[-1]} are set; fit the gate again")
        gate = tuple(weight for weight in weights if weight is not None)
        return cls(
            schema_version=version,
            role=role,
            domain=str(meta.get(DOMAIN, "")),
            weight=_float(meta, LAMBDA, path),
            temperature=_float(meta, TEMPERATURE, path) or 1.0,
            tokenizer_sha256=str(meta.get(TOKENIZER_SHA256, "")),
            tokenizer_n_tokens=_whole(meta, TOKENIZER_N_TOKENS, path),
            train={key.removeprefix(TRAIN): str(value) for key, value in meta.items() if key.startswith(TRAIN)} or None,
            eval_dataset=str(meta.get(EVAL_DATASET, "")),
            ppl_base=_float(meta, PPL_BASE, path),
            ppl_memory=_float(meta, PPL_MEMORY, path),
            ppl_mixture=_float(meta, PPL_MIXTURE, path),
            gate=gate or None,
        )


def is_memory(meta: Mapping[str, object]) -> bool:
    """Whether a GGUF with these keys says that it is a memory."""
    return meta.get(ROLE) == "memory"


def read(path: Path | str) -> tuple[dict[str, Scalar], list[TensorInfo]]:
    """Single values (numbers, booleans, strings) and tensors of a GGUF; arrays are left out.

    Raises MissingFileError and ModelFileError. Takes 15-60 ms, whatever the file's size.
    """
    with Header(path) as header:
        return header.scalars(), header.tensors


def patch(path: Path | str, values: Mapping[str, float]) -> None:
    """Set keys of PLACEHOLDERS in a memory GGUF, in place; NaN unsets one.

    All values go out in one write that spans the first to the last, then fsync: the file is never longer or shorter,
    and a crash leaves it loadable. Raises MissingFileError, and ModelFileError where a key is unknown or not in the
    file, or a value is outside its range, before anything is written, or where the file cannot be written.
    """
    checked = {key: _checked(key, value, path) for key, value in values.items()}
    if not checked:
        return
    with Header(path) as header:
        starts = {key: _placeholder(header, key) for key in checked}
        first, last = min(starts.values()), max(starts.values()) + 4
        span = bytearray(header.raw(first, last))
    for key, value in checked.items():
        struct.pack_into("<f", span, starts[key] - first, value)
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            os.lseek(descriptor, first, os.SEEK_SET)
            os.write(descriptor, span)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ModelFileError(path, f"cannot be written ({error.strerror}); make the file writable") from error


def tokenizer_digest(tokens: Iterable[bytes]) -> tuple[str, int]:
    """SHA-256 over the vocabulary, and its number of tokens without padding at the end.

    For each id in order u32 little-endian length + the token's bytes; padding, the tokens `[PAD<id>]` that converters
    write for embedding rows without a token, is excluded.
    """
    digest, n_tokens = hashlib.sha256(), 0
    for token_id, token in enumerate(tokens):
        if token != b"[PAD%d]" % token_id:
            digest.update(struct.pack("<I", len(token)) + token)
            n_tokens = token_id + 1
    return digest.hexdigest(), n_tokens


def _placeholder(header: Header, key: str) -> int:
    entry = header.entries.get(key)
    if entry is None or entry.kind != FLOAT32 or entry.count is not None:
        raise ModelFileError(header.path, f"it has no place for {key}; make it with memdec-edge convert")
    return entry.start


def _float(meta: Mapping[str, object], key: str, path: Path | str) -> float | None:
    """The number under `key`; None where it is absent or NaN."""
    if key not in meta:
        return None
    try:
        value = float(str(meta[key]))
    except ValueError:
        raise ModelFileError(path, f"{key} is {meta[key]!r}, not a number") from None
    return None if math.isnan(_checked(key, value, path)) else value


def _whole(meta: Mapping[str, object], key: str, path: Path | str) -> int | None:
    text = str(meta.get(key, "0"))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelFileError(path, f"{key} is {text!r}, not a whole number")
    return int(text) if key in meta else None


def _checked(key: str, value: float, path: Path | str) -> float:
    """`value` where it may stand under `key`; NaN (not set) may everywhere but under TEMPERATURE."""
    if key not in PLACEHOLDERS:
        raise ModelFileError(path, f"{key} cannot be changed in a finished file; only {', '.join(PLACEHOLDERS)} can")
    low, high = {LAMBDA: (0.0, 1.0), TEMPERATURE: TEMPERATURES, **dict.fromkeys(PERPLEXITIES, (1.0, 3e38))}.get(
        key, (-3e38, 3e38)
    )
    if not low <= value <= high and not (math.isnan(value) and key != TEMPERATURE):
        raise ModelFileError(path, f"{key} is {value}; it must be from {low:g} to {high:g}")
    return value
