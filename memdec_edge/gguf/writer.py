"""Writing a GGUF file: keys, tensor table, tensors one after the other in constant memory.

It is not gguf.GGUFWriter because that one cannot take a tokenizer block as raw bytes. Knows nothing of models.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian.
"""

import math
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from memdec_edge.gguf.header import ARRAY, FLOAT32, MAGIC, SCALARS, STRING, aligned
from memdec_edge.progress import Advance

VERSION = 3
UINT8, UINT32, INT32, BOOL, UINT64, INT64 = 0, 4, 5, 7, 10, 11  # enum gguf_type
Value = bool | int | float | str | bytes | list[str] | list[bytes] | list[int] | list[float]


class GgufFile:
    """Keys and tensors of a file to be written, in the order in which they are added.

    A key that is added again gets the new value in its first place.
    """

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.tensors: list[tuple[str, tuple[int, ...], GGMLQuantizationType]] = []

    def add(self, key: str, value: Value) -> None:
        """Add a key. An int becomes u32, a larger one u64, a negative one i64; a float becomes f32.

        A list becomes an array of strings, i32 or f32, and bytes become an array of u8. Raises struct.error,
        OverflowError and UnicodeEncodeError for a value that no type holds.
        """
        self.entries[key] = pack_entry(key, value)

    def add_tensor(self, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
        """Announce a tensor; `shape` is in PyTorch's order."""
        self.tensors.append((name, shape, kind))

    def write(self, path: Path, data: Iterable[Iterable[npt.NDArray[np.generic]]], advance: Advance) -> None:
        """Write everything to `path`. Raises OSError.

        data     the tensors in the order in which they were announced, each as pieces of its bytes
        advance  is called with 1 for each tensor written
        """
        with path.open("wb") as file:
            file.write(MAGIC + struct.pack("<IQQ", VERSION, len(self.tensors), len(self.entries)))
            file.writelines(self.entries.values())
            offset = 0
            for name, shape, kind in self.tensors:
                dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
                file.write(pack_string(name.encode()) + dimensions + struct.pack("<IQ", kind, offset))
                offset += aligned(n_bytes(shape, kind))
            file.write(bytes(aligned(file.tell()) - file.tell()))
            for (name, shape, kind), pieces in zip(self.tensors, data, strict=True):
                size, written = n_bytes(shape, kind), 0
                for piece in pieces:
                    written += file.write(np.ascontiguousarray(piece).view(np.uint8).data)
                assert written == size, f"{name} has {written} bytes and was announced with {size}"
                file.write(bytes(aligned(size) - size))
                advance(1)


def n_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Bytes that a tensor of a shape and a type takes in a GGUF."""
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // int(block) * int(size)


def pack_string(value: bytes) -> bytes:
    """A string as it stands in the file: length (u64), then the bytes."""
    return struct.pack("<Q", len(value)) + value


def pack_entry(key: str, value: Value) -> bytes:
    """Key, type and value as they stand in the file. Raises as GgufFile.add()."""
    head = pack_string(key.encode())
    if isinstance(value, str):
        return head + struct.pack("<I", STRING) + pack_string(value.encode())
    if isinstance(value, bytes):
        return head + struct.pack("<IIQ", ARRAY, UINT8, len(value)) + value
    if isinstance(value, list):
        kind, body = _array(value)
        return head + struct.pack("<IIQ", ARRAY, kind, len(value)) + body
    kind = _scalar_kind(value)
    return head + struct.pack("<I", kind) + SCALARS[kind].pack(value)


def _array(value: list[str] | list[bytes] | list[int] | list[float]) -> tuple[int, bytes]:
    """The type of an array's elements, and their bytes. The first element decides; an empty array is of strings."""
    if value and isinstance(value[0], int | float):
        kind, code = (FLOAT32, "f") if isinstance(value[0], float) else (INT32, "i")
        return kind, struct.pack(f"<{len(value)}{code}", *value)
    texts = (item.encode() if isinstance(item, str) else item for item in value if isinstance(item, str | bytes))
    return STRING, b"".join(map(pack_string, texts))


def _scalar_kind(value: float) -> int:
    """The gguf_type of a single number or boolean."""
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, float):
        return FLOAT32
    return UINT32 if 0 <= value < 2**32 else INT64 if value < 0 else UINT64
