"""Text files as documents: txt, md, jsonl with {"text": ...}, folders of those. UTF-8 only.

Used by evaluation and by training. Knows nothing of tokens or splits.
"""

import json
from pathlib import Path

from memdec_edge.errors import CorpusError, MissingFileError

TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
SPLITS = ("train", "valid", "test")
GENERAL = Path(__file__).with_name("general.txt")  # a page of general English: what a memory must not spoil
NO_TEXT = "no text in it; give .txt, .md or .jsonl files with some"


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


def split_files(path: Path) -> dict[str, list[Path]]:
    """The text files of a file or folder, by split.

    A folder with train.jsonl or test.jsonl names its splits by files; of anything else all files are "train", in order
    of names. Hidden files are left out. Raises MissingFileError, and CorpusError when there is no text file.
    """
    if path.is_dir():
        named = {split: path / f"{split}.jsonl" for split in SPLITS}
        if named["train"].is_file() or named["test"].is_file():
            return {split: [file] for split, file in named.items() if file.is_file()}
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file())
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    elif path.exists():
        files = [path]
    else:
        raise MissingFileError(path, "text file or folder")
    if not files:
        raise CorpusError(path, NO_TEXT)
    return {"train": files}


def read_documents(path: Path) -> list[str]:
    """The documents to evaluate: the test split where the folder names splits, else all.

    Raises as read_file() does, and CorpusError for a folder that names splits but no test split.
    """
    splits = split_files(path)
    if path.is_dir() and "test" not in splits and (path / "train.jsonl").is_file():
        raise CorpusError(path, "it has a train.jsonl but no test.jsonl; name the file to evaluate")
    documents = [document for file in splits.get("test", splits.get("train", [])) for document in read_file(file)]
    if not documents:
        raise CorpusError(path, NO_TEXT)
    return documents


def read_file(path: Path) -> list[str]:
    """Documents of one file, blank ones left out: each line of a jsonl file, else the whole file.

    Raises MissingFileError, and CorpusError for text that is not UTF-8 or a line that is no {"text": ...}.
    """
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
    # JSON can spell half a surrogate pair, which is no character
    return [text.encode("utf-8", "replace").decode("utf-8") for text in documents if text.strip()]
