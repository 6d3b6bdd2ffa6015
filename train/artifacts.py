"""A folder of intermediate results: a manifest of what they are made from, and results that can be proven.

A killed run goes on with what is not there yet. Three rules keep what is not the stage's own:

- A stage begins only in a folder that holds nothing else.
- It overwrites and removes only files that its manifest names, and shards that carry its identity.
- One process at a time works in the folder.

open_stage() only looks. Stage.begin() takes the folder, after all checks that may refuse the work; Stage.close() gives
it back. Several processes may write different shards of a stage that the first of them has begun. Knows nothing of
what the results mean.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from memdec_edge.errors import ExistingOutputError, StageError
from memdec_edge.files import LOCK, MANIFEST, is_leftover, remove_leftovers, sha256, write_text

from .lock import HOLDER, FolderLock
from .manifest import MadeFrom, Manifest, read_manifest
from .shards import SHARD, Array, Arrays, read_shard, stage_of, write_shard


class Stage:
    """Results in a folder; opened by open_stage().

    begun     the manifest in the folder agrees with what the results are to be made from
    manifest  what record() has added to it; {} until the stage has begun
    """

    def __init__(
        self,
        folder: Path,
        made_from: MadeFrom,
        layout: tuple[str, ...],
        fresh: bool,
        unread: Collection[str],
        beside: Collection[Path],
    ) -> None:
        self.folder, self._wanted, self._layout = folder, made_from, layout
        self._fresh, self._unread, self._beside = fresh, unread, beside
        self._lock = FolderLock(folder)
        self.begun, self.manifest = False, dict[str, Any]()
        self._proven: set[str] = set()  # names whose digest was checked: a shard of keys is read many times in a run
        self._look()

    @property
    def kind(self) -> str:
        """The kind of results."""
        return self._wanted.stage

    @property
    def identity(self) -> str:
        """The digest of what the results are made from; every shard carries it."""
        return (self._standing if self._standing and self.begun else self._wanted).identity

    @property
    def inputs(self) -> Mapping[str, str]:
        """What the results are made from: what a user would call a file -> its SHA-256."""
        return self._wanted.inputs

    def _look(self) -> None:
        """Read the manifest. Raises as open_stage() does."""
        self.reload()
        if self._standing is None:
            self._refuse_what_is_not_ours()
            return
        if self._standing.stage != self._wanted.stage:
            raise ExistingOutputError(self.folder)
        if not self.begun and not self._fresh:
            raise StageError(self.folder, self._standing.difference(self._wanted, self._unread))
        if self.begun and self._fresh and not self.is_whole():
            self.begun, self.manifest = False, {}
        for name in self._layout:
            if "*" not in name:
                self._refuse_to_overwrite(name)

    def reload(self) -> None:
        """Read the manifest again: another process of this run may have written it."""
        found = read_manifest(self.folder)
        self._standing = found.made_from if found else None
        self._own = self._names(found) if found else set()
        self.begun = found is not None and not found.made_from.difference(self._wanted, self._unread)
        self.manifest = found.entries if found and self.begun else {}

    def take(self) -> None:
        """Keep other processes out of the folder until close(), and look again at what they have left there.

        Raises StageBusyError naming a process that is at work in it, and what open_stage() raises.
        """
        if not self._lock.held:
            self._lock.acquire()
            self._look()

    def begin(self) -> None:
        """Take the folder, remove what is to be redone and what killed processes left half-written, write the manifest.

        Raises as take() does, and OutputError.
        """
        self.take()
        if not self.begun:
            self._remove_own()
            certain = {name for name in self._layout if "*" not in name and not name.endswith(SHARD)}
            self._standing, self._own, self.begun, self.manifest = self._wanted, certain, True, {}
            self.record()
        for folder in {self.folder, *((self.folder / pattern).parent for pattern in self._layout)}:
            remove_leftovers(folder)

    def close(self) -> None:
        """Let other processes work in the folder."""
        self._lock.release()

    def remove(self) -> None:
        """Remove all that the stage made, its manifest last, and the folder if nothing else is in it.

        Raises as take() does.
        """
        self.take()
        self._remove_own()
        (self.folder / MANIFEST).unlink(missing_ok=True)
        self.close()
        with suppress(OSError):
            self.folder.rmdir()

    def record(self, **entries: Any) -> None:
        """Add entries (anything JSON can hold) to the manifest. Raises OutputError."""
        self.manifest |= entries
        standing = self._standing or self._wanted
        write_text(self.folder / MANIFEST, Manifest(standing, self.manifest, sorted(self._own)).text)

    def owns(self, name: str) -> bool:
        """Whether the manifest names this file, or one in this folder, or this is a shard that carries its identity."""
        if name in self._own or any(each.startswith(f"{name}/") for each in self._own):
            return True
        identity = self._standing.identity if self._standing else ""
        return name.endswith(SHARD) and stage_of(self.folder / name) == identity != ""

    def claim(self, *names: str) -> None:
        """Record the names of files, no shards, that are about to be written.

        Raises ExistingOutputError for a file that stands there and is not the stage's own.
        """
        for name in names:
            self._refuse_to_overwrite(name)
        self.adopt(*names)

    def adopt(self, *names: str) -> None:
        """Record the names of files that the stage has written."""
        if not self._own.issuperset(names):
            self._own.update(names)
            self.record()

    def write(self, name: str, arrays: Arrays, **metadata: str) -> None:
        """Write a shard, whole or not at all. Raises OutputError, and ExistingOutputError as claim() does."""
        self._refuse_to_overwrite(name)
        self._proven.discard(name)
        write_shard(self.folder / name, arrays, self.identity, metadata)

    def read(self, name: str) -> dict[str, Array]:
        """The arrays of a shard, mapped into memory. Raises StageError: missing, torn, changed, or another stage's."""
        return self.read_with_metadata(name)[0]

    def read_with_metadata(self, name: str) -> tuple[dict[str, Array], dict[str, str]]:
        """The arrays of a shard, and the metadata that were written with it. Raises as read() does."""
        found = read_shard(self.folder / name, self.identity, name in self._proven)
        self._proven.add(name)
        return found

    def check(self, name: str) -> Path:
        """The path of a file whose digest the manifest has. Raises StageError when it is missing or was changed."""
        path = self.folder / name
        if not path.is_file() or (name not in self._proven and sha256(path) != self.manifest["files"].get(name)):
            raise StageError(path, "missing, or changed since it was written")
        self._proven.add(name)
        return path

    def check_recorded(self) -> None:
        """check() each file whose digest the manifest has."""
        for name in self.manifest.get("files", ()):
            self.check(name)

    def is_whole(self) -> bool:
        """Whether all recorded files are there and unchanged, and all shards that are there can be read."""
        recorded = self.manifest.get("files", {})
        try:
            self.check_recorded()
            for name in self._shards():
                if name not in recorded:
                    self.read(name)
        except StageError:
            return False
        return True

    def _names(self, found: Manifest) -> set[str]:
        """The names of its own that a manifest has recorded; of an earlier version's, what the layout says of them."""
        if found.own is not None:
            return set(found.own)
        made = (path.relative_to(self.folder).as_posix() for each in self._layout for path in self.folder.glob(each))
        return {*found.entries.get("files", ()), *(name for name in made if not name.endswith(SHARD))}

    def _shards(self) -> Iterator[str]:
        """Names of the shards that carry the identity of the manifest in the folder."""
        for pattern in ("*", "*/*"):
            for path in self.folder.glob(pattern + SHARD):
                if self.owns(name := path.relative_to(self.folder).as_posix()):
                    yield name

    def _refuse_what_is_not_ours(self) -> None:
        """Raise ExistingOutputError when something stands in a folder without a manifest."""
        if (self.folder.exists() or self.folder.is_symlink()) and not self.folder.is_dir():  # or a link to nothing
            raise ExistingOutputError(self.folder)
        for path in sorted(self.folder.iterdir()) if self.folder.exists() else ():
            expected = any(other.resolve().is_relative_to(path.resolve()) for other in self._beside)
            if not expected and path.name not in (LOCK, HOLDER) and not is_leftover(path):
                raise ExistingOutputError(path)

    def _refuse_to_overwrite(self, name: str) -> None:
        path = self.folder / name
        if path.exists() and not self.owns(name):
            raise ExistingOutputError(path)

    def _remove_own(self) -> None:
        """Remove what the stage of the manifest made, and nothing else; and the folders that this leaves empty."""
        root = self.folder.resolve()
        paths = [self.folder / name for name in {*self._own, *self._shards()}]
        paths = [path for path in paths if path.parent.resolve().is_relative_to(root) and not path.is_dir()]
        for path in paths:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in paths} - {self.folder}:
            with suppress(OSError):
                folder.rmdir()
        self._proven.clear()


def standing_stage(folder: Path) -> Stage | None:
    """The stage that stands in `folder`, whatever it was made from; None where there is none.

    Raises ExistingOutputError for a manifest that is not ours.
    """
    found = read_manifest(folder)
    return None if found is None else Stage(folder, found.made_from, (), False, (), ())


def open_stage(
    folder: Path,
    kind: str,
    inputs: Mapping[str, str],
    options: Mapping[str, Any],
    layout: tuple[str, ...] = (),
    fresh: bool = False,
    *,
    unread: Collection[str] = (),
    beside: Collection[Path] = (),
) -> Stage:
    """Look at the stage in `folder`, there or not; nothing is changed before Stage.begin().

    inputs   what a user would call a file -> its SHA-256
    options  the field of an option -> its value
    layout   names of files that the stage will write, and glob patterns of what else it may write
    fresh    a stage that was made from something else, or is damaged, is to be redone
    unread   inputs that manifests of an earlier version name although nothing reads them
    beside   folders that may stand in `folder` when the stage begins

    Raises ExistingOutputError for a folder that holds what is not the stage's own, and StageError naming what has
    changed since the manifest was written, unless `fresh`.
    """
    return Stage(folder, MadeFrom(kind, inputs, options), layout, fresh, unread, beside)
