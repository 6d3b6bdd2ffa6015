"""Text files as documents: txt, md, jsonl with {"text": ...}, folders of those. UTF-8 only, lines end with a line feed.

Evaluation and training read text through this module. Knows nothing of tokens, and of how splits are made.
"""

import json
from pathlib import Path

from memdec_edge.errors import CorpusError, MissingFileError
from memdec_edge.files import MANIFEST

TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
SPLITS = ("train", "valid", "test")
GENERAL = Path(__file__).with_name("general.txt")  # a page of general English: what a memory must not spoil
NO_TEXT = "no text in it; give .txt, .md or .jsonl files with some"
HELD_OUT = "cache/test.jsonl"  # where training keeps the documents that it took out of a corpus, in its output folder


def decode_text(data: bytes, name: Path | str) -> str:
    """Return UTF-8 text without a byte-order mark, each line end of Windows as a line feed.

    Raises CorpusError, which names `name` and the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise CorpusError(name, f"not UTF-8: byte 0x{byte:02x} at offset {error.start}; convert it to UTF-8") from error


def read_text(path: Path) -> str:
    """Return a text file whole; a pipe will do. Raises MissingFileError, and CorpusError for what cannot be read."""
    if path.is_dir():
        raise CorpusError(path, "is a folder; give a text file")
    if not path.exists():
        raise MissingFileError(path, "text file")
    try:
        return decode_text(path.read_bytes(), path)
    except OSError as error:
        raise CorpusError(path, f"cannot be read ({error.strerror or error})") from error


def split_files(path: Path) -> dict[str, list[Path]]:
    """Return the text files of a file or folder, by split.

    A folder with train.jsonl or test.jsonl names its splits by files. Of any other folder, and of a file, all is
    "train", in order of names. Hidden files are left out, and so are folders that hold results of training. Raises
    MissingFileError, and CorpusError where there is no text file.
    """
    if path.is_dir():
        named = {split: path / f"{split}.jsonl" for split in SPLITS}
        if named["train"].is_file() or named["test"].is_file():
            return {split: [file] for split, file in named.items() if file.is_file()}
        if _is_result(path):
            held_out = f", such as {path / HELD_OUT}" if (path / HELD_OUT).is_file() else ""
            raise CorpusError(path, f"holds what training made, not documents; give text{held_out}")
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file())
        results = {manifest.parent for manifest in path.rglob(MANIFEST) if _is_result(manifest.parent)}
        files = [file for file in files if results.isdisjoint(file.parents)]
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    elif path.exists():
        files = [path]
    else:
        raise MissingFileError(path, "text file or folder")
    if not files:
        raise CorpusError(path, NO_TEXT)
    return {"train": files}


def scored_files(path: Path) -> list[Path]:
    """Return the files to evaluate: the test split where a folder names splits, else all.

    Raises as split_files(), and CorpusError for a folder that names splits but no test split.
    """
    splits = split_files(path)
    if path.is_dir() and "test" not in splits and (path / "train.jsonl").is_file():
        raise CorpusError(path, "it has a train.jsonl but no test.jsonl; name the file to evaluate")
    return splits.get("test", splits.get("train", []))


def read_documents(path: Path) -> list[str]:
    """Return the documents of scored_files(). Raises as that and read_file() do, and CorpusError for blank ones."""
    documents = [document for file in scored_files(path) for document in read_file(file)]
    if not documents:
        raise CorpusError(path, NO_TEXT)
    return documents


def read_file(path: Path) -> list[str]:
    """Return the documents of one file, blank ones left out: each line of a jsonl file, else the whole file.

    Raises MissingFileError, and CorpusError for text that is not UTF-8 or a line that is no {"text": ...}.
    """
    return [text for _, text in numbered_documents(path)]


def numbered_documents(path: Path) -> list[tuple[int, str]]:
    """Return the documents of read_file(), each with its line in a jsonl file, from 1 on; 0 for a whole file."""
    text = read_text(path)
    if path.suffix.lower() != ".jsonl":
        return [(0, text)] if text.strip() else []
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
        documents.append((number, document))
    # JSON can spell half a surrogate pair, which is no character
    return [(number, text.encode("utf-8", "replace").decode("utf-8")) for number, text in documents if text.strip()]


def _is_result(folder: Path) -> bool:
    """Whether training made this folder: its manifest names a stage."""
    try:
        return "stage" in json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False
