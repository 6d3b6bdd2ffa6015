"""A shard: one safetensors file of arrays that proves itself, by their digest and by the stage that it belongs to.

It appears under its name only when it is whole (files.atomic_path), and a torn or flipped one is noticed when it is
read. Reading maps the file into memory, so that only what is used of it is in RAM; the library's own reader copies.
Knows nothing of what the arrays mean, nor which shards a stage has.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from memdec_edge.errors import OutputError, StageError
from memdec_edge.files import atomic_path

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
REMAKE = "remove that file and run again to make it anew, or `fresh` to redo everything"
SHARD = ".safetensors"  # ends the name of a shard
DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "U16": np.uint16, "U32": np.uint32, "I64": np.int64}
UNREADABLE = (
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
)  # what strange bytes run into
LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


def write_shard(path: Path, arrays: Arrays, identity: str, metadata: Mapping[str, str]) -> None:
    """Write arrays and metadata, with their digest and the identity of their stage. Raises OutputError."""
    proof = {"sha256": _digest(arrays, metadata), "stage": identity}
    try:
        with atomic_path(path) as part:
            whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            save_file(whole, part, {**metadata, **proof})
    except SafetensorError as error:  # how safetensors passes on what the operating system says
        raise OutputError(path, str(error)) from error


def read_shard(path: Path, identity: str, proven: bool) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays, mapped into memory, and the metadata.

    proven  its digest was checked before; digests of many gigabytes take their time

    Raises StageError when the file is missing, torn or changed, or belongs to another stage.
    """
    try:
        metadata, arrays = _map(path)
    except UNREADABLE as error:
        raise StageError(path, f"damaged ({error})", REMAKE) from error
    digest, stage = metadata.pop("sha256", ""), metadata.pop("stage", "")
    if not proven and digest != _digest(arrays, metadata):
        raise StageError(path, "damaged (its content does not match its digest)", REMAKE)
    if stage != identity:
        raise StageError(path, "belongs to a run with other inputs or options")
    return arrays, metadata


def stage_of(path: Path) -> str:
    """The identity of the stage that a shard says it belongs to; "" for a file that is no shard."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), LONGEST_HEADER)))
        return str(header["__metadata__"]["stage"])
    except UNREADABLE:
        return ""


def _map(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    """Metadata and arrays of a safetensors file; the arrays are views of a private memory map."""
    memory = np.memmap(path, np.uint8, mode="c")  # copy on write: torch warns of arrays that cannot be written
    start = 8 + int.from_bytes(memory[:8].tobytes(), "little")
    header = json.loads(memory[8:start].tobytes())
    metadata: dict[str, str] = header.pop("__metadata__")
    arrays: dict[str, Array] = {}
    if start + max(entry["data_offsets"][1] for entry in header.values()) != len(memory):
        raise ValueError("its length is not the one that its header says")
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        arrays[name] = memory[start + low : start + high].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return metadata, arrays


def _digest(arrays: Arrays, metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata, and names, types, shapes and bytes of the arrays."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
