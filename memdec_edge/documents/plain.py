"""Text that is stored as text: UTF-8 only, lines end with a line feed. Knows nothing of other kinds of files."""

from pathlib import Path
from typing import BinaryIO

from memdec_edge.errors import CorpusError, MemoryLimitError, MissingFileError

ENDLESS = 1 << 30  # bytes from a pipe or device that are refused before they fill the memory


def decode_text(data: bytes, name: Path | str, begin: int = 0) -> str:
    """Return UTF-8 text without a byte-order mark, each line end of Windows as a line feed.

    begin: where `data` stands in the file

    Raises CorpusError, which names `name` and the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        where = f"byte 0x{byte:02x} at offset {begin + error.start}"
        raise CorpusError(name, f"not UTF-8: {where}; convert it to UTF-8") from error


def read_text(path: Path) -> str:
    """Return a text file whole; a pipe will do. Raises MissingFileError, and CorpusError for what cannot be read."""
    return decode_text(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, pipe or device.

    Raises MissingFileError, CorpusError for what cannot be read and for a stream without an end, and MemoryLimitError
    for what is too large.
    """
    if path.is_dir():
        raise CorpusError(path, "is a folder; give a text file")
    if not path.exists():
        raise MissingFileError(path, "text file")
    try:
        if path.is_file():
            return path.read_bytes()
        with path.open("rb") as stream:
            return _read_all(stream, path)
    except MemoryError as error:
        raise MemoryLimitError(f"reading {path}, {path.stat().st_size:,} bytes", "divide the file") from error
    except OSError as error:
        raise CorpusError(path, f"cannot be read ({error.strerror or error})") from error


def read_stream(stream: BinaryIO, name: Path | str) -> str:
    """Return all text of a stream. Raises CorpusError as decode_text(), and for one without an end."""
    return decode_text(_read_all(stream, name), name)


def _read_all(stream: BinaryIO, name: Path | str) -> bytes:
    data = stream.read(ENDLESS + 1)
    if len(data) > ENDLESS:
        raise CorpusError(name, f"gives over {ENDLESS >> 20} MiB and may have no end; give a file")
    return data


def mended(text: str) -> str:
    """Return `text` with a question mark for each half of a surrogate pair, which is no character."""
    return text.encode("utf-8", "replace").decode("utf-8")
