"""The header of a GGUF file: where every value lies, read without loading the model.

Pure Python over a memory map, so that reading metadata needs neither llama.cpp nor seconds. For a vocabulary of
50,000-150,000 tokens it takes 15-60 ms, where gguf.GGUFReader takes 2-6 s. Files are hostile until proven otherwise:
every count and length is checked against what is left of the file. Knows nothing of what keys mean.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memdec_edge.errors import MissingFileError, ModelFileError

MAGIC = b"GGUF"
OLD_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # how llama.cpp's files began before GGUF
VERSIONS = (2, 3)
DAMAGED = "the file is damaged; download or make it again"
LFS_POINTER = b"version https://git-lfs"  # how the small text begins that stands for a file which Git LFS keeps
FLOAT32, STRING, ARRAY = 6, 8, 9  # enum gguf_type
SCALARS = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
ALIGNMENT_KEY, ALIGNMENT = "general.alignment", 32  # of every tensor's first byte, where the key says nothing else
U32, U64 = SCALARS[4], SCALARS[10]
MAX_ENTRIES = 1 << 16  # keys or tensors; real models have thousands at most
MAX_ELEMENTS = 1 << 24  # of an array; the largest vocabularies have 2^18 tokens
MAX_NAME = 1 << 16  # bytes of a key or tensor name
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS

Scalar = int | float | bool | str


@dataclass(frozen=True)
class Entry:
    """Where a key lies in the file.

    `entry` is where the key's length begins, `start` where the value or an array's first element does. The value ends
    before `end`.
    """

    kind: int  # enum gguf_type; of the elements where the value is an array
    count: int | None  # elements of an array; None: the value is a single one
    entry: int  # byte offsets from the file's start
    start: int
    end: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor; `shape` in ggml's order, the row's length first."""

    name: str
    shape: tuple[int, ...]
    kind: int  # enum ggml_type
    offset: int  # bytes from the start of the data section


class Header:
    """Entries and tensors of a GGUF, and its bytes.

    Raises MissingFileError, and ModelFileError for a file that is no GGUF, is cut short or lies about its counts.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ModelFileError(
                self.path, "is a folder and no GGUF file; make one of a checkpoint folder with memdec-edge convert"
            )
        if not self.path.is_file():
            raise MissingFileError(self.path, "GGUF file")
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                self._data: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise ModelFileError(self.path, f"cannot be read ({error.strerror}); make the file readable") from error
        self._at = 0
        self.entries: dict[str, Entry] = {}
        self.tensors: list[TensorInfo] = []
        try:
            self._scan()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Header":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the memory map."""
        if isinstance(self._data, mmap.mmap):
            with suppress(BufferError):  # views of array() keep it
                self._data.close()

    def scalars(self) -> dict[str, Scalar]:
        """Every single value by its key, in its own type; arrays are left out. Broken UTF-8 is replaced."""
        return {key: self._scalar(entry) for key, entry in self.entries.items() if entry.count is None}

    def strings(self, key: str) -> list[bytes]:
        """The elements of the string array `key`, as bytes. Raises ModelFileError where there is no such array."""
        entry = self.entries.get(key)
        if entry is None or entry.count is None or entry.kind != STRING:
            raise ModelFileError(self.path, f"{key} is not an array of strings")
        found, at, data, unpack = [], entry.start, self._data, U64.unpack_from
        for _ in range(entry.count):
            (length,) = unpack(data, at)
            found.append(data[at + 8 : at + 8 + length])
            at += 8 + length
        return found

    def numbers(self, key: str) -> list[int | float]:
        """The number under `key`, or the elements of an array of numbers; empty where there is none."""
        entry = self.entries.get(key)
        if entry is None or entry.kind not in SCALARS:
            return []
        return [value for (value,) in SCALARS[entry.kind].iter_unpack(self._data[entry.start : entry.end])]

    def array(self, name: str, kinds: Mapping[int, npt.DTypeLike]) -> npt.NDArray[Any]:
        """The tensor `name` as a read-only view of the file, in C's order; `kinds` has a NumPy type for each ggml type.

        The view keeps the file mapped, also after close(). Raises ModelFileError where there is no such tensor, of no
        such type, or where it lies outside the file.
        """
        found = next((tensor for tensor in self.tensors if tensor.name == name), None)
        if found is None or found.kind not in kinds:
            what = "is missing" if found is None else f"has the type {found.kind}, not {' or '.join(map(str, kinds))}"
            raise ModelFileError(self.path, f"the tensor {name} {what}; {DAMAGED}")
        dtype, count, begin = np.dtype(kinds[found.kind]), math.prod(found.shape), self._at_data + found.offset
        if begin % dtype.itemsize:
            raise ModelFileError(self.path, f"the tensor {name} begins at byte {begin}, between two numbers; {DAMAGED}")
        if begin + count * dtype.itemsize > len(self._data):
            raise self._truncated(name)
        return np.frombuffer(self._data, dtype, count, begin).reshape(found.shape[::-1])

    @property
    def cut_short(self) -> bool:
        """Whether something shortened the file since it was opened; reading what is gone would end the process."""
        return isinstance(self._data, mmap.mmap) and self._data.size() < len(self._data)

    def raw(self, start: int, end: int) -> bytes:
        """Bytes [start, end) of the file."""
        return self._data[start:end]

    def _scalar(self, entry: Entry) -> Scalar:
        if entry.kind == STRING:
            return self._data[entry.start + 8 : entry.end].decode("utf-8", "replace")
        value: Scalar = SCALARS[entry.kind].unpack_from(self._data, entry.start)[0]
        return value

    def _scan(self) -> None:
        self._refuse_other_formats()
        self._at = len(MAGIC) + U32.size
        n_tensors = self._count("number of tensors", MAX_ENTRIES)
        n_entries = self._count("number of keys", MAX_ENTRIES)
        for _ in range(n_entries):
            self._scan_entry()
        seen: set[str] = set()
        for _ in range(n_tensors):
            tensor = self._scan_tensor()
            if tensor.name in seen:
                raise ModelFileError(self.path, f"the tensor {tensor.name!r} stands in it twice; {DAMAGED}")
            seen.add(tensor.name)
            self.tensors.append(tensor)
        alignment = (self.numbers(ALIGNMENT_KEY) or [ALIGNMENT])[0]
        self._at_data = aligned(self._at, int(alignment)) if 0 < alignment < MAX_NAME else self._at

    def _refuse_other_formats(self) -> None:
        if self._data[: len(LFS_POINTER)] == LFS_POINTER:
            raise ModelFileError(self.path, "is a pointer of Git LFS and not the file; run git lfs pull in its folder")
        if self._data[:4] in OLD_MAGICS:
            raise ModelFileError(
                self.path, "is of llama.cpp's formats before GGUF; convert or download the model again"
            )
        if self._data[:4] != MAGIC:
            raise ModelFileError(self.path, "not a GGUF file; give a .gguf, or make one with memdec-edge convert")
        self._at = len(MAGIC)
        version = self._number(U32, "version")
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            raise ModelFileError(
                self.path,
                "is big-endian, llama.cpp wants little-endian; gguf-convert-endian (pip install gguf) swaps it",
            )
        if version not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            raise ModelFileError(
                self.path, f"GGUF version {version} is not known, only {known} are; convert the model again"
            )

    def _scan_entry(self) -> None:
        begin = self._at
        key = self._name("key")
        kind = self._number(U32, key)
        count: int | None = None
        if kind == ARRAY:
            kind = self._number(U32, key)
            count = self._count(f"number of elements of {key}", MAX_ELEMENTS)
        start = self._at
        if kind == STRING:
            self._skip_strings(1 if count is None else count, key)
        elif kind in SCALARS:
            self._skip(SCALARS[kind].size * (1 if count is None else count), key)
        else:  # an array of arrays too: llama.cpp knows none
            raise ModelFileError(self.path, f"{key} has the unknown value type {kind}; {DAMAGED}")
        if key in self.entries:
            raise ModelFileError(self.path, f"the key {key} stands in it twice; {DAMAGED}")
        self.entries[key] = Entry(kind, count, begin, start, self._at)

    def _scan_tensor(self) -> TensorInfo:
        name = self._name("tensor name")
        dimensions = self._number(U32, name)
        if dimensions > MAX_DIMENSIONS:
            raise ModelFileError(self.path, f"{name} has {dimensions} dimensions, more than {MAX_DIMENSIONS}")
        shape = tuple(self._number(U64, name) for _ in range(dimensions))
        return TensorInfo(name, shape, self._number(U32, name), self._number(U64, name))

    def _skip_strings(self, count: int, key: str) -> None:
        """Walk over `count` strings; the one hot loop, 0.1 us a string."""
        at, data, unpack, last = self._at, self._data, U64.unpack_from, len(self._data) - 8
        for _ in range(count):
            if at > last:
                raise self._truncated(key)
            at += 8 + unpack(data, at)[0]
        self._at = at
        self._skip(0, key)

    def _skip(self, size: int, what: str) -> None:
        if self._at + size > len(self._data):
            raise self._truncated(what)
        self._at += size

    def _number(self, kind: struct.Struct, what: str) -> int:
        at = self._at
        self._skip(kind.size, what)
        value: int = kind.unpack_from(self._data, at)[0]
        return value

    def _count(self, what: str, limit: int) -> int:
        value = self._number(U64, what)
        if value > limit:
            raise ModelFileError(self.path, f"the {what} is {value}, more than {limit}; {DAMAGED}")
        return value

    def _name(self, what: str) -> str:
        length = self._number(U64, what)
        if length > MAX_NAME:
            raise ModelFileError(self.path, f"a {what} is {length} bytes long; {DAMAGED}")
        at = self._at
        self._skip(length, what)
        name = self._data[at : self._at].decode("utf-8", "replace")
        if not name.isprintable():  # it would stand in messages
            raise ModelFileError(self.path, f"a {what} at byte {at} is no text; {DAMAGED}")
        return name

    def _truncated(self, what: str) -> ModelFileError:
        return ModelFileError(
            self.path,
            f"ends at byte {len(self._data)}, inside {what}; the file is cut short; download or make it again",
        )


def aligned(offset: int, alignment: int = ALIGNMENT) -> int:
    """The first multiple of `alignment` from `offset` on."""
    return -(-offset // alignment) * alignment
