"""Text files as documents: txt, md, jsonl with {"text": ...}, folders of those. UTF-8 only.

Used by evaluation and by training. Knows nothing of tokens or splits.
"""

import json
from pathlib import Path

from memdec_edge.errors import CorpusError, MissingFileError

TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
SPLITS = ("train", "valid", "test")


def decode_text(data: bytes, name: Path | str) -> str:
    """UTF-8 text, a byte-order mark dropped. Raises CorpusError naming the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise CorpusError(name, f"not UTF-8: byte 0x{byte:02x} at offset {error.start}; convert it to UTF-8") from error


def read_text(path: Path) -> str:
    """A text file whole. Raises MissingFileError and CorpusError."""
    if not path.is_file():
        raise MissingFileError(path, "text file")
    return decode_text(path.read_bytes(), path)


def read_documents(path: Path) -> list[str]:
    """Documents of a file or folder, in order of names; empty ones are left out.

    A jsonl file holds a document a line, another file is one document. Of a folder with split files the test split is
    read. Raises MissingFileError, and CorpusError for text that is not UTF-8, lines that are no {"text": ...}, or
    nothing at all.
    """
    if path.is_dir():
        split = path / "test.jsonl"
        files = [split] if split.is_file() else text_files(path)
    else:
        files = [path]
    documents = [document for file in files for document in read_file(file)]
    if not documents:
        raise CorpusError(path, "no text in it; give .txt, .md or .jsonl files with some")
    return documents


def text_files(folder: Path) -> list[Path]:
    """Every text file below `folder`, sorted; hidden ones are left out."""
    found = (file for file in folder.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def read_file(path: Path) -> list[str]:
    """Documents of one file, empty ones left out."""
    text = read_text(path)
    if path.suffix.lower() != ".jsonl":
        return [text] if text.strip() else []
    documents = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            document = None
        if not isinstance(document, str):
            raise CorpusError(path, f'line {number} is no JSON object with a string "text"; mend that line')
        documents.append(document)
    return [document for document in documents if document.strip()]
