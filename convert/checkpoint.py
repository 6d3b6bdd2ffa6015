"""The weights of an HF checkpoint folder: where each tensor lies in safetensors or PyTorch files, and its numbers.

Files are hostile until proven otherwise: a header is checked against the file's size before anything is allocated, and
pickles are read by torch's weights_only. Tensors are read one at a time, by plain reads: pages of a memory map would
count towards the process. Knows nothing of GGUF and of what tensors mean.
"""

import json
import math
import pickle
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memdec_edge.errors import MissingExtraError, MissingFileError, ModelFileError

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # safetensors' names; NumPy has no bfloat16
NAMES = ("model.safetensors", "pytorch_model.bin")  # what save_pretrained writes; an index stands beside shards
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
Facts = Mapping[str, Any]
Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: raw little-endian numbers, rows one after the other."""

    path: Path
    offset: int  # bytes from the file's start
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]

    def read(self) -> Array:
        """The numbers as they are stored; bfloat16 as its bits (widen() makes numbers of them)."""
        try:
            flat = np.fromfile(self.path, DTYPES[self.dtype], math.prod(self.shape), offset=self.offset)
            return flat.reshape(self.shape)
        except (OSError, ValueError) as error:
            raise ModelFileError(self.path, f"cannot be read ({error}); it is damaged or cut short") from error


def widen(array: Array, dtype: str) -> npt.NDArray[np.float32]:
    """Numbers of a dtype of DTYPES as float32."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused
        return array.astype(np.float32)


class Checkpoint:
    """One folder: its tensors by name.

    `prefix` stands before every name but `head`'s; it is added where the folder holds the bare model. Raises
    MissingFileError for a folder or file that is not there, ModelFileError for one that cannot be used, and
    MissingExtraError where PyTorch files are there and PyTorch is not.
    """

    def __init__(self, folder: Path, prefix: str = "", head: str = "") -> None:
        self.folder = folder
        found: dict[str, Stored] = {}
        for path in _weight_files(folder):
            if not path.is_file():
                raise MissingFileError(path, "weights file")
            for name, stored in _safetensors(path) if path.suffix == ".safetensors" else _pickled(path):
                found[name] = stored
        bare = not any(name.startswith(prefix) for name in found)
        self.tensors = {
            f"{prefix}{name}" if bare and not name.startswith(f"{head}.") else name: stored
            for name, stored in found.items()
        }


def _weight_files(folder: Path) -> list[Path]:
    for name in NAMES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            names = read_json(index).get("weight_map")
            if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
                raise ModelFileError(index, "has no weight_map; save the checkpoint again")
            shards = sorted(set(names.values()))
            for shard in shards:
                if Path(shard).name != shard:
                    raise ModelFileError(index, f"points to {shard!r:.80}, outside of its folder")
            return [folder / shard for shard in shards]
        if (folder / name).is_file():
            return [folder / name]
    return [folder / NAMES[0]]


def _safetensors(path: Path) -> Iterator[tuple[str, Stored]]:
    """Format: https://github.com/huggingface/safetensors#format; u64 length, JSON, data."""
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
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, _stored(path, name, entry, 8 + length, size)


def _stored(path: Path, name: str, entry: object, data: int, size: int) -> Stored:
    """One entry of a safetensors header; the data start at byte `data` of a file of `size` bytes."""
    facts = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = facts.get("dtype"), _whole(facts.get("shape")), _whole(facts.get("data_offsets"))
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ModelFileError(path, f"{name:.200} is {dtype:.20}; only {', '.join(DTYPES)} can be converted")
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise ModelFileError(path, f"its header says nothing usable about {name!r:.200}; it is damaged")
    begin, end = offsets
    if end - begin != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize or data + end > size:
        raise ModelFileError(
            path, f"cannot be read ({name:.200} is not where it should be); it is damaged or cut short"
        )
    return Stored(path, data + begin, dtype, shape)


def _whole(values: object) -> tuple[int, ...] | None:
    """A list of sizes or offsets; None where it is none."""
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**63 for value in values):
        return None
    return tuple(values)


def _pickled(path: Path) -> Iterator[tuple[str, Stored]]:
    """A state dict saved by torch.save: unpickled without its numbers, which are read later from where they lie."""
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises MissingFileError and ModelFileError."""
    if not path.is_file():
        raise MissingFileError(path, "file")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ModelFileError(path, f"is no JSON ({error})") from error
    if not isinstance(body, dict):
        raise ModelFileError(path, f"holds a JSON {type(body).__name__}, not an object")
    return body
