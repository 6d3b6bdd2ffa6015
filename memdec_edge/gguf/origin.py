"""Which text a memory was trained on: digests of the files, which its GGUF carries. Knows nothing of their content."""

from collections.abc import Iterable
from pathlib import Path

from memdec_edge.files import sha256
from memdec_edge.gguf.header import Header
from memdec_edge.gguf.metadata import TRAIN

TEXTS = TRAIN + "texts_sha256"  # strings: of each file of the corpus, but of a test split
MAX_TEXTS = 1000  # a corpus of more files goes without


def files_seen(memory: Path, files: Iterable[Path]) -> list[Path]:
    """Return those of `files` that the memory was trained on, as far as its GGUF says so; pipes are left out.

    Raises MissingFileError and ModelFileError for a GGUF that cannot be read.
    """
    with Header(memory) as header:
        known = (
            {digest.decode("utf-8", "replace") for digest in header.strings(TEXTS)}
            if TEXTS in header.entries
            else set()
        )
    return [file for file in files if file.is_file() and sha256(file) in known] if known else []
