"""What this machine has of our making: memories and indexes, kNN caches and checkpoints, and how to be rid of them.

A GGUF says by its role that it is ours, a folder by its manifest. All else is left alone. Caches and checkpoints are
known where the extra [train], which makes them, is installed. Knows nothing of terminals.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memdec_edge.errors import (
    ExistingOutputError,
    MemdecError,
    MissingExtraError,
    MissingFileError,
    ModelFileError,
    RoleError,
)
from memdec_edge.files import LOCK, MANIFEST, cache_home
from memdec_edge.gguf import metadata, parts
from memdec_edge.gguf.header import MAGIC
from memdec_edge.hf_folder import begins_with, read_json

if TYPE_CHECKING:
    from memdec_edge.train.artifacts import Stage

RESULTS = ("learn", "demo")  # folders of cache_home(); each folder in them is one result
STAGES = {"kNN cache": "cache", "memory": "checkpoint"}  # stages that stand alone, and what a user calls them
OURS = "memory, index, cache, checkpoint or result"


@dataclass(frozen=True)
class Item:
    """Something of ours. domain, base: "" where it does not say."""

    path: Path
    kind: str  # memory, index, cache, checkpoint; of found() also result
    n_bytes: int
    domain: str = ""
    base: str = ""  # the teacher, else what the base's GGUF calls itself
    tokenizer: str = field(default="", repr=False)  # its digest


@dataclass(frozen=True)
class Inventory:
    """What was found, by path, and which files looked ours but could not be read."""

    items: list[Item]
    warnings: list[str]


def take_inventory(folders: Sequence[Path] = ()) -> Inventory:
    """Look through the results of `learn` and `demo`, and through `folders`, without following links.

    Raises MissingFileError for a folder that is not there.
    """
    items: dict[Path, Item] = {}
    warnings: list[str] = []
    for folder in folders:
        if not folder.exists():
            raise MissingFileError(folder, "file or folder")
    for root in (*(cache_home() / name for name in RESULTS), *folders):
        for path in _candidates(root):
            try:
                if item := _item(path):
                    items[path.resolve()] = item
            except MemdecError as error:
                warnings.append(str(error))
    bases = {item.tokenizer: item.base for item in items.values() if item.tokenizer and item.base}
    named = [replace(item, base=item.base or bases.get(item.tokenizer, "")) for item in items.values()]
    return Inventory(sorted(named, key=lambda item: item.path), list(dict.fromkeys(warnings)))


def found(path: Path) -> Item:
    """What of ours is at `path`, ready to be removed.

    Raises MissingFileError, RoleError for what this tool did not make, ModelFileError for a link or a damaged file, and
    StageBusyError where a process is at work in it, or in a folder around it.
    """
    if path.is_symlink():
        raise ModelFileError(path, f"is a link to {path.resolve()}; give that, or remove the link yourself")
    if not path.exists():
        raise MissingFileError(path, "file or folder")
    item = _item(path)
    if item is None and _is_result(path):
        item = Item(path, "result", _size(path, whole=True))
    if item is None:
        what = "plain model" if begins_with(path, MAGIC) else "file or folder that memdec-edge did not make"
        raise RoleError(path, what, OURS, "remove it yourself")
    _refuse_busy(path)
    return item


def remove(item: Item) -> None:
    """Remove what found() found: a GGUF with all its parts, what a stage has made, or a whole result.

    Files that others have put into a cache or a checkpoint stay. Raises as found() does, and OSError.
    """
    if item.kind == "result":
        _refuse_busy(item.path)
        shutil.rmtree(item.path)
    elif stage := _stage(item.path):
        stage.remove()
    else:
        for file in parts.files(item.path)[::-1]:  # what is left after a stop can still be removed by its first name
            file.unlink()


def _candidates(root: Path) -> Iterator[Path]:
    """GGUFs and folders with a manifest in `root`, or `root` itself; nothing inside a kNN cache."""
    if root.is_file():
        yield root
    for name, folders, files in os.walk(root):
        folder = Path(name)
        if MANIFEST in files:
            yield folder
            with suppress(MissingExtraError):
                if (stage := _stage(folder)) and STAGES.get(stage.kind) == "cache":
                    folders.clear()
                    continue
        folders.sort()
        yield from (folder / file for file in sorted(files) if file.endswith(".gguf") and _is_first(file))


def _is_first(name: str) -> bool:
    split = parts.NAME.fullmatch(name)
    return split is None or int(split["number"]) == 1


def _item(path: Path) -> Item | None:
    if path.is_dir():
        return _item_of_stage(path)
    return _item_of_gguf(path) if begins_with(path, MAGIC) else None


def _item_of_gguf(path: Path) -> Item | None:
    values, _ = metadata.read(path)
    facts = metadata.MemoryMetadata.from_gguf(path, values)
    if facts.role == "model":
        return None
    base = (facts.train or {}).get("teacher") or values.get("general.base_model.0.name") or ""
    return Item(path, facts.role, parts.n_bytes(path), facts.domain, str(base), facts.tokenizer_sha256)


def _item_of_stage(folder: Path) -> Item | None:
    stage = _stage(folder)
    if stage is None or stage.kind not in STAGES:
        return None
    noted = folder / metadata.CHECKPOINT_METADATA
    notes = read_json(noted) if noted.is_file() else {}
    base = notes.get(f"{metadata.TRAIN}teacher") or stage.manifest.get("teacher") or ""
    return Item(folder, STAGES[stage.kind], _size(folder), str(notes.get(metadata.DOMAIN, "")), str(base))


def _stage(folder: Path) -> "Stage | None":
    """The stage in a folder, if its manifest is ours. Raises MissingExtraError where [train] is not installed."""
    if not (folder / MANIFEST).is_file():
        return None
    from memdec_edge.train.artifacts import standing_stage

    try:
        return standing_stage(folder)
    except ExistingOutputError:
        return None


def _size(folder: Path, whole: bool = False) -> int:
    """Bytes of the files in a folder; those of stages inside it count only for the `whole`."""
    total = 0
    for name, folders, files in os.walk(folder):
        if not whole:
            folders[:] = [each for each in folders if not (Path(name) / each / MANIFEST).is_file()]
        total += sum((Path(name) / file).lstat().st_size for file in files)
    return total


def _is_result(path: Path) -> bool:
    return path.is_dir() and path.resolve().parent in [(cache_home() / name).resolve() for name in RESULTS]


def _refuse_busy(path: Path) -> None:
    """Raise StageBusyError where a process is at work in `path`, in a folder inside it or in one around it."""
    inside = [Path(name) for name, _, files in os.walk(path) if LOCK in files]
    around = [folder for folder in path.resolve().parents if (folder / LOCK).is_file()]
    if not inside and not around:
        return
    from memdec_edge.train.lock import FolderLock

    for folder in (*inside, *around):
        lock = FolderLock(folder)
        lock.acquire()
        lock.release()
