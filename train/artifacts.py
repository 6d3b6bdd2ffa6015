"""A folder of intermediate results: a manifest of what it was made from, and shards that prove themselves.

A shard is one safetensors file that carries the digest of its own arrays and the identity of its stage; it appears
under its name only when it is whole (files.atomic_path). So a killed run is continued by making the shards that are
not there, several processes may make different shards, and a torn or flipped one is noticed when it is read. The
digests of other files stand in the manifest, under "files".

open_stage() only looks; begin() takes the folder, after all checks that may refuse the work. Knows nothing of what the
arrays mean.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from memdec_edge.errors import ExistingOutputError, OutputError, StageError
from memdec_edge.files import MANIFEST, atomic_path, is_leftover, sha256, write_text

REMAKE = "remove that file and run again to make it anew, or `fresh` to redo everything"
Arrays = Mapping[str, npt.NDArray[Any]]

FORMAT = 4  # raised when the meaning of a stage's files changes
DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "U16": np.uint16, "U32": np.uint32, "I64": np.int64}


class Stage:
    """Results in `folder`, made from `made_from`; opened by open_stage().

    layout  glob patterns of the files that the stage makes, apart from the manifest and those that it records
    begun   the manifest stands and agrees with `made_from`
    """

    def __init__(self, folder: Path, made_from: dict[str, Any], layout: tuple[str, ...]) -> None:
        self.folder, self.made_from, self.layout = folder, made_from, layout
        self.identity = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        self._proven: set[str] = set()  # names whose digest was checked: a shard of keys is read many times in a run
        self.reload()

    def reload(self) -> None:
        """Read the manifest again: another process may have written them."""
        manifest = _read_manifest(self.folder)
        self.begun = manifest is not None and not _difference(manifest, self.made_from)
        self.manifest: dict[str, Any] = manifest["facts"] if manifest and self.begun else {}

    def begin(self) -> None:
        """Take the folder: remove what is to be redone, write the manifest, remove what killed processes left."""
        if not self.begun:
            self._clear()
            self.record()
            self.begun = True
        for folder in {self.folder, *((self.folder / pattern).parent for pattern in self.layout)}:
            for path in folder.glob(".*"):
                if is_leftover(path):
                    path.unlink(missing_ok=True)

    def redo(self) -> None:
        """Let begin() start anew."""
        self.begun, self.manifest = False, {}

    def record(self, **entries: Any) -> None:
        """Add entries (anything JSON can hold) to the manifest."""
        self.manifest |= entries
        body = {**self.made_from, "facts": self.manifest}
        write_text(self.folder / MANIFEST, json.dumps(body, indent=1, sort_keys=True) + "\n")

    def write(self, name: str, arrays: Arrays, **metadata: str) -> None:
        """Write a shard atomically. Raises OutputError."""
        path = self.folder / name
        self._proven.discard(name)
        proof = {"sha256": _digest(arrays, metadata), "stage": self.identity}
        try:
            with atomic_path(path) as part:
                save_file(
                    {key: np.ascontiguousarray(value) for key, value in arrays.items()}, part, {**metadata, **proof}
                )
        except SafetensorError as error:  # how safetensors passes on what the operating system says
            raise OutputError(path, str(error)) from error

    def read(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a shard, mapped into memory: only what is used of them is in RAM.

        Raises StageError when it is torn, was changed, or belongs to another stage.
        """
        return self.read_with_metadata(name)[0]

    def read_with_metadata(self, name: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
        """The arrays of a shard, and the metadata that were written with it. Raises as read() does."""
        path = self.folder / name
        try:
            arrays, metadata = _map(path)
        except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise StageError(path, f"damaged ({error})", REMAKE) from error
        digest, identity = metadata.pop("sha256", ""), metadata.pop("stage", "")
        if name not in self._proven and digest != _digest(arrays, metadata):
            raise StageError(path, "damaged (its content does not match its digest)", REMAKE)
        if identity != self.identity:
            raise StageError(path, "belongs to a run with other inputs or options")
        self._proven.add(name)
        return arrays, metadata

    def check(self, name: str) -> Path:
        """The path of a file that the manifest's "files" names. Raises StageError when it is missing or was changed."""
        path = self.folder / name
        if not path.is_file() or (name not in self._proven and sha256(path) != self.manifest["files"].get(name)):
            raise StageError(path, "missing, or changed since it was written")
        self._proven.add(name)
        return path

    def check_recorded(self) -> None:
        """check() each file that the manifest's "files" names."""
        for name in self.manifest.get("files", ()):
            self.check(name)

    def is_whole(self) -> bool:
        """Whether all recorded files are there and unchanged, and all shards that are there can be read."""
        recorded = self.manifest.get("files", {})
        try:
            self.check_recorded()
            for path in self._made():
                name = path.relative_to(self.folder).as_posix()
                if path.suffix == ".safetensors" and name not in recorded:
                    self.read(name)
        except StageError:
            return False
        return True

    def _made(self) -> Iterator[Path]:
        for pattern in self.layout:
            yield from (path for path in self.folder.glob(pattern) if path.is_file())

    def _clear(self) -> None:
        """Remove what the stage of the old manifest made, and nothing else."""
        manifest = _read_manifest(self.folder)
        if manifest is None:
            return
        root = self.folder.resolve()
        recorded = {self.folder / name for name in manifest["facts"].get("files", ())}
        for path in {*self._made(), *(path for path in recorded if path.resolve().is_relative_to(root))}:
            path.unlink(missing_ok=True)
            if path.parent != self.folder and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()
        self._proven.clear()


def open_stage(
    folder: Path,
    kind: str,
    inputs: Mapping[str, str],
    options: Mapping[str, Any],
    layout: tuple[str, ...] = (),
    fresh: bool = False,
) -> Stage:
    """Look at the stage in `folder`, there or not; nothing is changed before Stage.begin().

    inputs   what a user would call a file -> its SHA-256
    options  what a user would call an option ("--k") -> its value
    fresh    a stage that was made from something else, or is damaged, is to be redone

    Raises ExistingOutputError when the folder holds files that are not ours, StageError naming what changed when its
    manifest disagrees and not `fresh`.
    """
    if folder.exists() and not folder.is_dir():
        raise ExistingOutputError(folder)
    chosen = {name: _plain(value) for name, value in options.items()}
    made_from = {"format": FORMAT, "stage": kind, "inputs": dict(inputs), "options": chosen}
    stage = Stage(folder, made_from, layout)
    manifest = _read_manifest(folder)
    if manifest is None:
        if folder.exists() and any(path.is_file() and not is_leftover(path) for path in folder.iterdir()):
            raise ExistingOutputError(folder)
    elif manifest["stage"] != kind:
        raise ExistingOutputError(folder)
    elif not fresh and not stage.begun:
        raise StageError(folder, _difference(manifest, made_from))
    elif fresh and not stage.is_whole():
        stage.redo()
    return stage


def _plain(value: Any) -> Any:
    """2 for 2.0: they are the same option, and must have the same digest."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first thing in which two manifests differ, in words; empty when none does."""
    if old.get("format") != new["format"]:
        return f"made by another version (format {old.get('format')}, now {new['format']})"
    for name in sorted({*old["inputs"], *new["inputs"]}):
        before, now = old["inputs"].get(name), new["inputs"].get(name)
        if before != now:
            what = "is new" if before is None else "is gone" if now is None else "has changed"
            return f"made with other inputs: {name} {what}"
    for name in sorted({*old["options"], *new["options"]}):
        before, now = old["options"].get(name), new["options"].get(name)
        if before != now:
            return f"made with {name} {before}, now {now}"
    return ""


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """None when there is none. Raises ExistingOutputError for one that is not ours, or not any more."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        body = None
    ours = isinstance(body, dict) and all(isinstance(body.get(key), dict) for key in ("inputs", "options", "facts"))
    if not ours or "stage" not in body:
        raise ExistingOutputError(path)
    manifest: dict[str, Any] = body
    return manifest


def _map(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Arrays and metadata of a safetensors file, as views of a private memory map (safetensors itself copies)."""
    memory = np.memmap(path, np.uint8, mode="c")  # copy on write: torch warns of arrays that cannot be written
    start = 8 + int.from_bytes(memory[:8].tobytes(), "little")
    header = json.loads(memory[8:start].tobytes())
    metadata: dict[str, str] = header.pop("__metadata__")
    arrays: dict[str, npt.NDArray[Any]] = {}
    if start + max(entry["data_offsets"][1] for entry in header.values()) != len(memory):
        raise ValueError("its length is not the one that its header says")
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        arrays[name] = memory[start + low : start + high].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays, metadata


def _digest(arrays: Arrays, metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata, and names, types, shapes and bytes of the arrays."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
