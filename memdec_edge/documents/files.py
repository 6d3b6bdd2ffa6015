"""The files of a corpus: on disk, or in a zip. What is hidden, looped, broken or no file is left out, by name.

A zip is read in memory and nothing of it is unpacked to disk, so its names can lead nowhere. What claims to unpack to
more than it could hold honestly is refused. Knows nothing of kinds and splits.
"""

import gzip
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from memdec_edge.documents.plain import read_bytes
from memdec_edge.errors import CorpusError
from memdec_edge.files import sha256

LARGEST = 1 << 31  # bytes that an archive may unpack to; text of a corpus that is larger comes as files
SUSPICIOUS = 16 << 20  # bytes; below that no ratio is suspicious
MOST_RATIO = 200  # of unpacked to packed bytes; text reaches 10, tables of numbers 50, bombs over 1000
MOST_MEMBERS = 1_000_000


@dataclass(frozen=True)
class File:
    """A file on disk, or a member of a zip on disk; `inside` is where it stands below the root of the corpus."""

    path: Path
    inside: PurePosixPath
    member: str = ""  # name in the zip `path`

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)


class Reader:
    """Reads files, and holds the zip open whose members are being read, so that its directory is read once."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._archive: zipfile.ZipFile | None = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def read(self, file: File) -> bytes:
        """Return the bytes of a file, those of a .gz unpacked.

        Raises CorpusError, and MissingFileError for one that is gone.
        """
        data = self._stored(file)
        return _gunzip(data, file.name) if file.inside.suffix.lower() == ".gz" else data

    def sha256(self, file: File) -> str:
        """Return the hex digest of a file's bytes: the same in a zip and out of it. Raises CorpusError and OSError."""
        return hashlib.sha256(self._stored(file)).hexdigest() if file.member else sha256(file.path)

    def _stored(self, file: File) -> bytes:
        if not file.member:
            return read_bytes(file.path)
        if self._archive is None or self._path != file.path:
            self._close()
            self._path, self._archive = file.path, _zip(file.path, str(file.path))
        try:
            info = self._archive.getinfo(file.member)
        except KeyError as error:
            raise CorpusError(file.name, "is in the zip no more: something replaced it; run this again") from error
        return _member(self._archive, info, file.name)

    def _close(self) -> None:
        if self._archive is not None:
            self._archive.close()
        self._path = self._archive = None


def file_digests(files: Iterable[File]) -> dict[File, str]:
    """Return SHA-256 of each file, pipes left out, and what cannot be read: whoever reads it says so."""
    found: dict[File, str] = {}
    with Reader() as reader:
        for file in files:
            with suppress(CorpusError, OSError):
                if file.path.is_file():
                    found[file] = reader.sha256(file)
    return found


def walk(root: Path, left_out: dict[str, str]) -> list[File]:
    """Return the regular files below a folder in order of names; `left_out` gets name -> reason of all others.

    Links to folders are followed, each folder once. Members of a zip stand where a folder of its name would.
    """
    found: list[File] = []
    seen = {_identity(root)}

    def unreadable(error: OSError) -> None:
        left_out[str(error.filename)] = f"cannot be read ({error.strerror})"

    for folder, folders, names in os.walk(root, followlinks=True, onerror=unreadable):
        here = Path(folder)
        for name in sorted(folders):
            path = here / name
            reason = "hidden" if name.startswith(".") else "this folder was read already" if _again(path, seen) else ""
            if reason:
                folders.remove(name)
                left_out[str(path)] = reason
        for name in names:
            path = here / name
            if name.startswith("."):
                left_out[str(path)] = "hidden"
            elif not path.is_file():
                left_out[str(path)] = "broken link" if path.is_symlink() and not path.exists() else "no regular file"
            else:
                found.append(File(path, PurePosixPath(path.relative_to(root).as_posix())))
    found.sort(key=lambda file: file.path)
    return [each for file in found for each in _opened(file, left_out)]


def members(path: Path, left_out: dict[str, str]) -> list[File]:
    """Return the files in a zip in order of names; `left_out` as in walk().

    Raises CorpusError for one that is damaged, encrypted, a bomb, or a zip in a zip.
    """
    files = []
    with _zip(read_bytes(path) if not path.is_file() else path, str(path)) as archive:
        for info in archive.infolist():
            inside = PurePosixPath(info.filename.replace("\\", "/"))
            if info.is_dir():
                continue
            if any(part.startswith((".", "__MACOSX")) for part in inside.parts):
                left_out[f"{path}/{info.filename}"] = "hidden"
            elif inside.suffix.lower() == ".zip":
                left_out[f"{path}/{info.filename}"] = "a zip in a zip; unpack the outer one"
            else:
                files.append(File(path, inside, info.filename))
    return sorted(files, key=lambda file: file.inside)


def unzip(data: bytes, name: str) -> dict[str, bytes]:
    """Return the members of a zip that is a document (docx, epub), by name. Raises CorpusError as members() does."""
    with _zip(data, name) as archive:
        return {info.filename: _member(archive, info, name) for info in archive.infolist() if not info.is_dir()}


def _opened(file: File, left_out: dict[str, str]) -> Iterator[File]:
    """The file itself, or what is in it where it is a zip. A zip that cannot be opened is left out by name."""
    if file.path.suffix.lower() != ".zip":
        yield file
        return
    try:
        for each in members(file.path, left_out):
            yield File(each.path, file.inside / each.inside, each.member)
    except CorpusError as error:
        left_out[str(error.path)] = error.reason


def _zip(source: bytes | Path, name: str) -> zipfile.ZipFile:
    """A zip whose claims are believable. Raises CorpusError."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CorpusError(name, f"is no readable zip ({error}); make it again") from error
    infos = archive.infolist()
    unpacked, packed = sum(info.file_size for info in infos), sum(info.compress_size for info in infos)
    real = len(source) if isinstance(source, bytes) else source.stat().st_size
    if unpacked > LARGEST or len(infos) > MOST_MEMBERS:
        archive.close()
        raise CorpusError(name, f"unpacks to {unpacked:,} bytes, more than {LARGEST:,}; unpack it into a folder")
    if unpacked > SUSPICIOUS and unpacked > MOST_RATIO * min(packed, real):
        archive.close()
        raise CorpusError(name, f"unpacks to {unpacked // max(1, real):,} times its size, as a zip bomb does")
    return archive


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    try:
        with archive.open(info) as file:  # reads no more than file_size, which _zip() has checked
            return file.read()
    except RuntimeError as error:  # what zipfile raises for a password
        raise CorpusError(name, "is encrypted; unpack it into a folder") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise CorpusError(name, f"is damaged ({error}); make the zip again") from error


def _gunzip(data: bytes, name: str) -> bytes:
    """Raises CorpusError for what is damaged or unpacks to more than an honest file does."""
    most = min(LARGEST, max(SUSPICIOUS, MOST_RATIO * len(data)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(name, f"is no readable gzip file ({error}); make it again") from error
    if len(unpacked) > most:
        raise CorpusError(name, f"unpacks to over {most:,} bytes; unpack it first, if it is honest")
    return unpacked


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _again(path: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder was met already, by a link or otherwise; from now on it was."""
    try:
        found = _identity(path)
    except OSError:
        return False  # os.walk() says why
    again = found in seen
    seen.add(found)
    return again
