"""A folder of intermediate results: a manifest of what it was made from, and shards that prove themselves.

A shard is one safetensors file that carries the digest of its own arrays and the identity of its stage; it appears
under its name only when it is whole (files.atomic_path). So a killed run is continued by making the shards that are
not there, several processes may make different shards, and a torn or flipped one is noticed when it is read.
Knows nothing of what the arrays mean.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from memdec_edge.errors import ExistingOutputError, OutputError, StageError
from memdec_edge.files import atomic_path, sha256, write_text

Arrays = Mapping[str, npt.NDArray[Any]]

MANIFEST = "manifest.json"
FORMAT = 1  # raised when the meaning of a stage's files changes
_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}")  # a temporary file of atomic_path whose process was killed


class Stage:
    """A folder whose manifest agrees with `inputs` and `options`; made by open_stage()."""

    def __init__(self, folder: Path, made_from: dict[str, Any]) -> None:
        self.folder = folder
        self.made_from = made_from
        self.identity = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        self.facts: dict[str, Any] = {}
        self.reload()

    def reload(self) -> None:
        """Read the facts again: another process may have written them."""
        manifest = self.folder / MANIFEST
        if manifest.exists():
            self.facts = _read_manifest(manifest)["facts"]

    def record(self, **facts: Any) -> None:
        """Add facts (anything JSON can hold) to the manifest."""
        self.facts |= facts
        body = {**self.made_from, "facts": self.facts}
        write_text(self.folder / MANIFEST, json.dumps(body, indent=1, sort_keys=True) + "\n")

    def write(self, name: str, arrays: Arrays, **facts: str) -> None:
        """Write a shard atomically. Raises OutputError."""
        path = self.folder / name
        metadata = {**facts, "sha256": _digest(arrays), "stage": self.identity}
        try:
            with atomic_path(path) as part:
                save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, part, metadata=metadata)
        except SafetensorError as error:  # how safetensors passes on what the operating system says
            raise OutputError(path, str(error)) from error

    def read(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a shard. Raises StageError when it is torn, was changed, or belongs to another stage."""
        return self.read_with_facts(name)[0]

    def read_with_facts(self, name: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
        """The arrays of a shard, and the facts that were written with it. Raises as read() does."""
        path = self.folder / name
        try:
            with safe_open(path, framework="numpy") as file:
                facts: dict[str, str] = file.metadata() or {}
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        except (SafetensorError, OSError, ValueError) as error:
            raise StageError(path, f"damaged ({error})") from error
        if facts.get("sha256") != _digest(arrays):
            raise StageError(path, "damaged (its content does not match its digest)")
        if facts.get("stage") != self.identity:
            raise StageError(path, "belongs to a run with other inputs or options")
        return arrays, facts

    def check(self, name: str, digest: str) -> Path:
        """The path of a plain file, whose SHA-256 must be `digest`. Raises StageError."""
        path = self.folder / name
        if not path.is_file() or sha256(path) != digest:
            raise StageError(path, "missing, or changed since it was written")
        return path


def open_stage(
    folder: Path, kind: str, inputs: Mapping[str, str], options: Mapping[str, Any], fresh: bool, write: bool = True
) -> Stage:
    """Open or start the stage in `folder`; `inputs` maps what a user would call a file to its SHA-256.

    `write` False: leave the folder as it is (a process that is not the main one). Raises ExistingOutputError when the
    folder holds files that are not ours, StageError naming what changed when its manifest disagrees and not `fresh`.
    """
    made_from = {"format": FORMAT, "stage": kind, "inputs": dict(inputs), "options": dict(options)}
    manifest = folder / MANIFEST
    if folder.exists() and not folder.is_dir():
        raise ExistingOutputError(folder)
    if write and manifest.exists():
        old = _read_manifest(manifest)
        if old.get("stage") != kind:
            raise ExistingOutputError(folder)
        difference = _difference(old, made_from)
        if fresh:
            _clear(folder)
        elif difference:
            raise StageError(folder, difference)
        _remove_leftovers(folder)
    elif write and folder.exists():
        _remove_leftovers(folder)
        if any(path.is_file() for path in folder.iterdir()):
            raise ExistingOutputError(folder)
    stage = Stage(folder, made_from)
    if write and not manifest.exists():
        stage.record()
    return stage


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
            return f"made with --{name.replace('_', '-')} {before}, now {now}"
    return ""


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StageError(path, f"damaged ({error})") from error
    if not isinstance(body, dict) or not {"inputs", "options", "facts"} <= body.keys():
        raise StageError(path, "not the manifest of a memdec-edge folder")
    return body


def _clear(folder: Path) -> None:
    """Remove the stage: its files, and the subfolders of shards; a subfolder that is a stage of its own stays."""
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
        elif not (path / MANIFEST).exists():
            shutil.rmtree(path)


def _remove_leftovers(folder: Path) -> None:
    for path in (*folder.glob(".*"), *folder.glob("*/.*")):
        if path.is_file() and _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _digest(arrays: Arrays) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
