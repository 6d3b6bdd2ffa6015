"""Writing files: a reader sees the old one or the whole new one. Knows nothing of what is written."""

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from memdec_edge.errors import ExistingOutputError, OutputError

MANIFEST = "manifest.json"  # in a folder of results: what they were made from
LOCK = ".memdec-lock"  # in a folder in which a process is at work: the file that it has locked
_PART = ".memdec-part-"  # in the names of temporary files: no user's dotfile has it


def refuse_existing(path: Path, overwrite: bool = False) -> None:
    """Raise ExistingOutputError where `path` may not be written: a file without `overwrite`, a folder, pipe or device.

    A symbolic link stands for what it leads to.
    """
    if path.exists() and not path.is_file():
        raise ExistingOutputError(path, "it is no regular file; choose another path")
    if path.exists() and not overwrite:
        raise ExistingOutputError(path, "give `overwrite` to replace it, or choose another path")


def refuse_input(path: Path, inputs: Iterable[Path]) -> None:
    """Raise ExistingOutputError where `path` is one of the files that its content is made from, by whatever name."""
    for other in inputs if path.exists() else ():
        if other.exists() and path.samefile(other):
            raise ExistingOutputError(path, f"it is made from {other}; choose another path")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it is fsynced and renamed to `path`, else removed.

    Where `path` is a symbolic link, the file that it leads to is replaced, and the link stays. The new file keeps the
    permissions of the old one. Raises ExistingOutputError for what is no regular file, and OutputError when the
    operating system refuses (no space, no permission, file size limit).
    """
    refuse_existing(path, overwrite=True)
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    with scratch_path(target) as part:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask())
        part.replace(target)


@contextmanager
def scratch_path(path: Path) -> Iterator[Path]:
    """Yield the path of an empty file beside `path` that is removed in the end. Raises OutputError.

    What killed processes left in that folder is removed first.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}{_PART}", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error
    part = Path(name)
    try:
        yield part
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error
    finally:
        part.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`, unless a process writes there at the moment."""
    if (lock := _lock(folder)) is not None:
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """Say that a process writes in `folder`, until the descriptor is closed or the process ends, however it ends.

    Where no other process writes there, leftovers are removed. None where there is no folder, or where folders cannot
    be locked (Windows, some network file systems): leftovers stay there.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    with suppress(OSError):
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in folder.glob(".*"):
                if is_leftover(path):
                    path.unlink(missing_ok=True)
        fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def is_leftover(path: Path) -> bool:
    """Return whether `path` is a temporary file of atomic_path(); where no process writes it, its own was killed."""
    return re.fullmatch(rf"\..+{re.escape(_PART)}[a-z0-9_]{{8}}", path.name) is not None and path.is_file()


def cache_home() -> Path:
    """Return the folder of what can be made again: MEMDEC_HOME, else the platform's user cache folder."""
    import platformdirs

    return Path(os.environ.get("MEMDEC_HOME") or platformdirs.user_cache_path("memdec-edge"))


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def shown_name(path: PurePath) -> str:
    """Return the last part of a path as text: bytes of it that are not UTF-8 become U+FFFD."""
    return shown_path(PurePath(path.name))


def shown_path(path: PurePath) -> str:
    """Return a path as text: bytes of it that are not UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")


def sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
