"""The files of a GGUF: one, or several where it was split (`NAME-00001-of-00003.gguf` and on).

The first file's `split.count` says how many there are; llama.cpp loads the first and finds the others by its name.
Knows nothing of what keys and tensors mean.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from memdec_edge.errors import MissingFileError, ModelFileError
from memdec_edge.gguf.header import Header, TensorInfo

NUMBER, COUNT = "split.no", "split.count"
UINT16 = 2  # enum gguf_type
NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def files(path: Path | str) -> list[Path]:
    """Every file of a GGUF, `path` first.

    Raises MissingFileError that names a part which is not there, and ModelFileError where `path` is not the first part
    or a file of a part's name is none.
    """
    with Header(path) as header:
        return [header.path, *others(header)]


def n_bytes(path: Path | str) -> int:
    """Size of all files together. Raises as files()."""
    return sum(file.stat().st_size for file in files(path))


def tensors(path: Path | str) -> list[TensorInfo]:
    """Tensors of all files. Raises as files()."""
    with Header(path) as header:
        return [*header.tensors, *tensors_of_others(header)]


def tensors_of_others(header: Header) -> Iterator[TensorInfo]:
    """Tensors of the parts after the first. Raises as files()."""
    for file in others(header):
        with Header(file) as part:
            yield from part.tensors


def others(header: Header) -> list[Path]:
    """The parts after the first, whose header is given. Raises as files()."""
    count = _u16(header, COUNT) if COUNT in header.entries else 1
    if count < 2:
        return []
    if number := _u16(header, NUMBER):
        first = f"; give the first, {_sibling(header, count, 0).name}" if NAME.fullmatch(header.path.name) else ""
        raise ModelFileError(header.path, f"is part {number + 1} of {count}{first}")
    found = []
    for number in range(1, count):
        other = _sibling(header, count, number)
        if not other.is_file():
            raise MissingFileError(other, f"part {number + 1} of the {count} of {header.path.name}")
        with Header(other) as part:
            if _u16(part, NUMBER) != number:
                raise ModelFileError(other, f"{NUMBER} is {_u16(part, NUMBER)}; the file's name says {number}")
        found.append(other)
    return found


def _sibling(header: Header, count: int, number: int) -> Path:
    found = NAME.fullmatch(header.path.name)
    if found is None or int(found["count"]) != count:
        raise ModelFileError(
            header.path, f"{COUNT} is {count}; the file's name must end in -00001-of-{count:05d}.gguf, as it was made"
        )
    return header.path.with_name(f"{found['stem']}-{number + 1:05d}-of-{count:05d}.gguf")


def _u16(header: Header, key: str) -> int:
    entry = header.entries.get(key)
    if entry is None or entry.kind != UINT16 or entry.count is not None:
        raise ModelFileError(header.path, f"{key} is not a whole number (u16); the file is damaged")
    return int(header.numbers(key)[0])
