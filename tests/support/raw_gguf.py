"""GGUF files as loose parts: any key, type, shape and offset, sound or not; and tiny sound ones of each architecture.

The shapes and keys stand here a second time, written down from llama.cpp's sources and not from ours, so that they
judge our tables. Knows nothing of what a test does with the files.
"""

import math
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES

from memdec_edge.gguf.header import ARRAY, SCALARS, STRING, Header

UINT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, UINT64, INT64, FLOAT64 = 0, 2, 3, 4, 5, 6, 7, 10, 11, 12
ALIGNMENT = 32
SIZES: dict[int, tuple[int, int]] = {
    int(kind): size for kind, size in GGML_QUANT_SIZES.items()
}  # elements of a block, its bytes


@dataclass(frozen=True)
class RawEntry:
    """A key, its type and its value as bytes; of an array the elements' type and number too."""

    key: bytes
    kind: int
    body: bytes
    element: int | None = None
    count: int = 0

    def pack(self) -> bytes:
        head = struct.pack("<Q", len(self.key)) + self.key + struct.pack("<I", self.kind)
        return head + (b"" if self.element is None else struct.pack("<IQ", self.element, self.count)) + self.body

    def items(self) -> list[bytes]:
        """The elements of an array; of strings without their lengths."""
        if self.element != STRING:
            size = SCALARS[self.element or 0].size
            return [self.body[at : at + size] for at in range(0, len(self.body), size)]
        found, at = [], 0
        for _ in range(self.count):
            length = int.from_bytes(self.body[at : at + 8], "little")
            found.append(self.body[at + 8 : at + 8 + length])
            at += 8 + length
        return found

    def with_items(self, items: list[bytes]) -> "RawEntry":
        """The array with other elements, as items() gives them."""
        strings = self.element == STRING
        body = b"".join(len(item).to_bytes(8, "little") + item if strings else item for item in items)
        return replace(self, body=body, count=len(items))


@dataclass(frozen=True)
class RawTensor:
    """A row of the tensor table, and the tensor's bytes. `offset` None: where the bytes really stand."""

    name: bytes
    shape: tuple[int, ...]
    kind: int
    data: bytes
    offset: int | None = None


@dataclass
class RawGguf:
    """All of a file."""

    entries: list[RawEntry] = field(default_factory=list)
    tensors: list[RawTensor] = field(default_factory=list)

    def write(self, path: Path) -> Path:
        table, data = b"", bytearray()
        for tensor in self.tensors:
            offset = len(data) if tensor.offset is None else tensor.offset
            table += struct.pack("<Q", len(tensor.name)) + tensor.name
            table += struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            table += struct.pack("<IQ", tensor.kind, offset)
            data += tensor.data + bytes(-len(tensor.data) % ALIGNMENT)
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.entries))
        head += b"".join(entry.pack() for entry in self.entries) + table
        path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + data)
        return path

    def add(self, key: str, value: Any, kind: int | None = None) -> None:
        self.entries.append(entry(key, value, kind))

    def set(self, key: str, value: Any, kind: int | None = None) -> None:
        """Replace a key's value, or add it."""
        self.entries = [old for old in self.entries if old.key != key.encode()] + [entry(key, value, kind)]

    def retype(self, name: str, kind: int) -> None:
        """Give a tensor another type, and as many zero bytes as that takes."""
        for at, tensor in enumerate(self.tensors):
            if tensor.name == name.encode():
                self.tensors[at] = replace(tensor, kind=kind, data=bytes(n_bytes(tensor.shape, kind)))


def entry(key: str, value: Any, kind: int | None = None) -> RawEntry:
    """`kind` is that of the value, or of the elements of a list; by default u32, f32, bool, string or i32 in arrays."""
    if isinstance(value, list):
        kind = _kind(value[0], INT32) if kind is None else kind
        return RawEntry(key.encode(), ARRAY, b"".join(_body(item, kind) for item in value), kind, len(value))
    kind = _kind(value, UINT32) if kind is None else kind
    return RawEntry(key.encode(), kind, _body(value, kind))


def _kind(value: Any, whole: int) -> int:
    return {bool: BOOL, int: whole, float: FLOAT32, str: STRING}[type(value)]


def _body(value: Any, kind: int) -> bytes:
    if kind == STRING:
        text = str(value).encode()
        return struct.pack("<Q", len(text)) + text
    packed: bytes = SCALARS[kind].pack(value)
    return packed


def n_bytes(shape: tuple[int, ...], kind: int) -> int:
    """What a tensor takes; 0 where its rows do not consist of whole blocks, or the type is not known."""
    elements, size = SIZES.get(kind, (0, 0))
    if not elements or not shape or shape[0] % elements:
        return 0
    return math.prod(shape) // elements * size


def read(path: Path) -> RawGguf:
    """A sound file as loose parts."""
    found = RawGguf()
    with Header(path) as header:
        for key, place in header.entries.items():
            array = place.count is not None
            kind, element = (ARRAY, place.kind) if array else (place.kind, None)
            body = header.raw(place.start, place.end)
            found.entries.append(RawEntry(key.encode(), kind, body, element, place.count or 0))
        sizes = [n_bytes(tensor.shape, tensor.kind) for tensor in header.tensors]
        begin = path.stat().st_size - sum(size + -size % ALIGNMENT for size in sizes)
        for tensor, size in zip(header.tensors, sizes, strict=True):
            data = header.raw(begin + tensor.offset, begin + tensor.offset + size)
            found.tensors.append(RawTensor(tensor.name.encode(), tensor.shape, tensor.kind, data))
    return found


# --- tiny files of each architecture ------------------------------------------------------------------------------

SIZES_OF: dict[str, int] = {
    "E": 64, "F": 96, "heads": 4, "kv": 2, "head": 16, "value": 16, "layers": 2, "C": 128,
}  # fmt: skip
COMMON = {
    "context_length": "C", "embedding_length": "E", "block_count": "layers", "feed_forward_length": "F",
    "attention.head_count": "heads", "attention.head_count_kv": "kv",
}  # fmt: skip
RMS = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0}
HEAD_SIZES = {"attention.key_length": "head", "attention.value_length": "value", "rope.dimension_count": "head"}
LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}
KEYS: dict[str, dict[str, Any]] = {  # after the architecture's name; a text names a size
    "gpt2": COMMON | LAYER_NORM,
    "llama": COMMON | RMS | HEAD_SIZES | {"vocab_size": "V"},
    "qwen2": COMMON | RMS,
    "qwen3": COMMON | RMS | HEAD_SIZES,
    "gptneox": COMMON | LAYER_NORM | {"rope.dimension_count": 4, "use_parallel_residual": True},
    "gemma3": COMMON | RMS | HEAD_SIZES | {"attention.sliding_window": 16, "rope.freq_base_swa": 10000.0},
}
OUTER = {"token_embd.weight": "E V", "output_norm.weight": "E"}
QKV = {
    "attn_norm.weight": "E", "ffn_norm.weight": "E",
    "attn_q.weight": "E Q", "attn_k.weight": "E K", "attn_v.weight": "E W", "attn_output.weight": "Q E",
}  # fmt: skip
GATED = {"ffn_gate.weight": "E F", "ffn_up.weight": "E F", "ffn_down.weight": "F E"}
BIASES = {"attn_q.bias": "Q", "attn_k.bias": "K", "attn_v.bias": "W"}
HEAD_NORMS = {"attn_q_norm.weight": "head", "attn_k_norm.weight": "head"}
FUSED = {
    "attn_norm.weight": "E", "attn_norm.bias": "E", "ffn_norm.weight": "E", "ffn_norm.bias": "E",
    "attn_qkv.weight": "E QKW", "attn_qkv.bias": "QKW", "attn_output.weight": "Q E", "attn_output.bias": "E",
    "ffn_up.weight": "E F", "ffn_up.bias": "F", "ffn_down.weight": "F E", "ffn_down.bias": "E",
}  # fmt: skip
OUTER_NORM = {"output_norm.bias": "E"}
TENSORS: dict[str, tuple[dict[str, str], dict[str, str]]] = {  # outside of the blocks, in one; sizes in ggml's order
    "gpt2": (OUTER | OUTER_NORM | {"position_embd.weight": "E C"}, FUSED),
    "llama": (OUTER | {"output.weight": "E V"}, QKV | GATED),
    "qwen2": (OUTER, QKV | GATED | BIASES),
    "qwen3": (OUTER | {"output.weight": "E V"}, QKV | GATED | HEAD_NORMS),
    "gptneox": (OUTER | OUTER_NORM | {"output.weight": "E V"}, FUSED),
    "gemma3": (OUTER, QKV | GATED | HEAD_NORMS | {"post_attention_norm.weight": "E", "post_ffw_norm.weight": "E"}),
}
ARCHITECTURES = tuple(KEYS)
WHOLE_HEADS = ("gpt2", "gptneox")  # as many heads of keys as of queries, as their converters write it


def tiny(architecture: str, tokenizer_from: Path, seed: int = 0, **sizes: int) -> RawGguf:
    """A model of random F32 weights with the tokenizer of another GGUF; `sizes` differ from SIZES_OF."""
    source = read(tokenizer_from)
    tokenizer = [old for old in source.entries if old.key.startswith(b"tokenizer.")]
    n_tokens = next(old.count for old in tokenizer if old.key == b"tokenizer.ggml.tokens")
    if architecture in WHOLE_HEADS:
        sizes = {"kv": sizes.get("heads", SIZES_OF["heads"])} | sizes
    size = SIZES_OF | {"V": n_tokens} | sizes
    size["Q"], size["K"], size["W"] = (
        size["heads"] * size["head"],
        size["kv"] * size["head"],
        size["kv"] * size["value"],
    )
    size["QKW"] = size["Q"] + size["K"] + size["W"]
    found = RawGguf()
    found.add("general.architecture", architecture)
    for key, value in KEYS[architecture].items():
        found.add(f"{architecture}.{key}", size[value] if isinstance(value, str) else value)
    found.entries += tokenizer
    outer, block = TENSORS[architecture]
    named = outer | {f"blk.{i}.{name}": shape for i in range(size["layers"]) for name, shape in block.items()}
    random = np.random.default_rng(seed)
    for name, names in named.items():
        shape = tuple(size[part] for part in names.split())
        found.tensors.append(RawTensor(name.encode(), shape, 0, weights(random, name, shape)))
    return found


def weights(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> bytes:
    """F32, of a scale at which logits are spread."""
    drawn = random.standard_normal(shape[::-1]).astype(np.float32)
    return (1 + 0.1 * drawn if "norm" in name else drawn * 1.5 / shape[0] ** 0.5).astype(np.float32).tobytes()


def tiny_gguf_of(path: Path, architecture: str, tokenizer_from: Path, **changes: Any) -> Path:
    """Write tiny(); `changes` are keys after the architecture's name with `__` for dots, and their values."""
    found = tiny(architecture, tokenizer_from)
    for key, value in changes.items():
        found.set(f"{architecture}.{key.replace('__', '.')}", value)
    return found.write(path)


def split_gguf(whole: Path, stem: Path) -> Path:
    """A GGUF in three files, as llama-gguf-split writes them; the first, which is returned, has no tensors."""
    source = read(whole)
    half = len(source.tensors) // 2
    parts = []
    for number, tensors in enumerate(([], source.tensors[:half], source.tensors[half:])):
        part = RawGguf(list(source.entries) if number == 0 else [], list(tensors))
        part.add("split.no", number, UINT16)
        part.add("split.count", 3, UINT16)
        part.add("split.tensors.count", len(source.tensors), 5)
        parts.append(part.write(stem.with_name(f"{stem.name}-{number + 1:05d}-of-00003.gguf")))
    return parts[0]
