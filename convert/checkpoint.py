"""The weights of an HF checkpoint folder: where each tensor lies in safetensors or PyTorch files, and its numbers.

Files are hostile until proven otherwise. A header is checked against the file's size before anything is allocated.
torch's weights_only mode reads pickles. Tensors are read one at a time, by plain reads, since pages of a memory map
would count towards the process. Knows nothing of GGUF, nor of what a tensor is for.
"""

import json
import math
import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdec_edge.errors import MissingExtraError, ModelFileError
from memdec_edge.hf_folder import weight_files

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # safetensors' names; NumPy has no bfloat16
METADATA = "__metadata__"  # in a safetensors header: no tensor
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
BLOCK = 1 << 20  # elements that are read or encoded at a time: gguf's quantiser needs 20 bytes for each
Array = npt.NDArray[np.generic]


class Tensor(ABC):
    """Numbers of one shape, which a part at a time can be had of: little-endian, one row after the other."""

    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]

    @abstractmethod
    def part(self, start: int, count: int) -> Array:
        """Elements [start, start + count) of the flat tensor; bfloat16 as its bits. Raises ModelFileError."""

    def read(self) -> Array:
        """All numbers; bfloat16 as its bits (widen() makes numbers of them)."""
        return self.part(0, math.prod(self.shape)).reshape(self.shape)

    def holds_same(self, other: "Tensor") -> bool:
        """Whether shapes and all numbers are equal; NaN equals nothing."""
        if self.shape != other.shape:
            return False
        size = math.prod(self.shape)
        for start in range(0, size, BLOCK):
            count = min(BLOCK, size - start)
            ours, theirs = widen(self.part(start, count), self.dtype), widen(other.part(start, count), other.dtype)
            if not np.array_equal(ours, theirs):
                return False
        return True


@dataclass(frozen=True)
class Stored(Tensor):
    """A tensor as a file has it."""

    path: Path
    offset: int  # bytes from the file's start
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    def part(self, start: int, count: int) -> Array:
        """As Tensor.part()."""
        dtype = np.dtype(DTYPES[self.dtype])
        try:
            found = np.fromfile(self.path, dtype, count, offset=self.offset + start * dtype.itemsize)
        except OSError as error:
            raise ModelFileError(self.path, f"cannot be read ({error.strerror}); make the file readable") from error
        if len(found) != count:
            raise ModelFileError(self.path, f"ends inside a tensor of shape {self.shape}; it is damaged or cut short")
        return found


def widen(array: Array, dtype: str) -> npt.NDArray[np.float32]:
    """Numbers of a dtype of DTYPES as float32."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which encode() refuses
        return array.astype(np.float32)


class Checkpoint:
    """The tensors of one folder by name.

    prefix  stands before every name but `head`'s; it is added where the folder holds the bare model
    head    name of the head, without ".weight"
    named   the weights file that config.json names, or ""

    Raises MissingFileError for a file that is not there, and ModelFileError for one that cannot be used. Raises
    MissingExtraError where the weights are PyTorch files and PyTorch is not installed.
    """

    def __init__(self, folder: Path, prefix: str = "", head: str = "", named: str = "") -> None:
        self.folder = folder
        found: dict[str, Stored] = {}
        files, warning = weight_files(folder, named)
        self.warnings = (warning,) if warning else ()
        for path in files:
            found |= tensors_of(path)
        bare = not any(name.startswith(prefix) for name in found)
        self.tensors: dict[str, Tensor] = {
            f"{prefix}{name}" if bare and not name.startswith(f"{head}.") else name: stored
            for name, stored in found.items()
        }


def tensors_of(path: Path) -> dict[str, Stored]:
    """Each tensor of a weights file by its name. Raises ModelFileError, and MissingExtraError as Checkpoint does."""
    return _safetensors(path) if path.suffix == ".safetensors" else dict(_pickled(path))


def _safetensors(path: Path) -> dict[str, Stored]:
    """Each tensor's place by its name.

    Format: https://github.com/huggingface/safetensors#format: u64 length, JSON, data.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > min(size - 8, MAX_HEADER):
                raise ModelFileError(path, "cannot be read (no safetensors header); it is damaged or cut short")
            header = json.loads(file.read(length).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(path, f"cannot be read ({error}); it is damaged or cut short") from error
    if not isinstance(header, dict):
        raise ModelFileError(path, "has no list of tensors in its header; it is damaged")
    found = {name: _stored(path, name, entry, 8 + length, size) for name, entry in header.items() if name != METADATA}
    end = 8 + length
    for name, stored in sorted(found.items(), key=lambda item: (item[1].offset, item[1].n_bytes)):
        if stored.offset != end:  # the format has neither gaps nor overlaps, and transformers refuses them too
            raise ModelFileError(path, f"{name:.200} does not begin where the tensor before it ends; it is damaged")
        end += stored.n_bytes
    if end != size:
        raise ModelFileError(path, f"goes on for {size - end} bytes after its last tensor; it is damaged")
    return found


def _stored(path: Path, name: str, entry: object, data: int, size: int) -> Stored:
    """One entry of a safetensors header; the data start at byte `data` of a file of `size` bytes."""
    found = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = found.get("dtype"), _whole(found.get("shape")), _whole(found.get("data_offsets"))
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ModelFileError(
            path, f"{name:.200} is {dtype:.20}; convert takes {', '.join(DTYPES)}; save it as one of them"
        )
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise ModelFileError(path, f"its header says nothing usable about {name!r:.200}; it is damaged")
    begin, end = offsets
    if end - begin != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize or data + end > size:
        raise ModelFileError(
            path, f"cannot be read ({name:.200} is not where it should be); it is damaged or cut short"
        )
    return Stored(path, data + begin, dtype, shape)


def _whole(values: object) -> tuple[int, ...] | None:
    """Sizes or offsets as a tuple; None where `values` is no list of such numbers."""
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**63 for value in values):
        return None
    return tuple(values)


def _pickled(path: Path) -> Iterator[tuple[str, Stored]]:
    """Each tensor's name and place in a state dict of torch.save.

    torch unpickles the dict without its numbers; Stored.part() later takes them from their place in the file.
    """
    try:
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "convert") from error
    try:
        with FakeTensorMode():
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelFileError(
            path, f"cannot be read ({reason:.120}); it is damaged or holds more than weights"
        ) from error
    dtypes = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    for name, tensor in state.items() if isinstance(state, dict) else ():
        if not isinstance(tensor, torch.Tensor):
            raise ModelFileError(
                path, f"{name!r:.200} is a {type(tensor).__name__} and no tensor; save the model again"
            )
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)  # set where there are no numbers
        if tensor.dtype not in dtypes or start is None or not tensor.is_contiguous():
            advice = "save it as safetensors (save_pretrained)"
            raise ModelFileError(path, f"{name:.200} ({tensor.dtype}) is not stored as plain numbers; {advice}")
        offset = start + tensor.storage_offset() * tensor.itemsize
        yield name, Stored(path, offset, dtypes[tensor.dtype], tuple(tensor.shape))
