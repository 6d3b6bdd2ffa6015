"""Which files a memory was trained on, or an index holds: their digests in its GGUF. Knows nothing of their content."""

from pathlib import Path

from memdec_edge.gguf.header import Header
from memdec_edge.gguf.metadata import TRAIN

TEXTS = TRAIN + "texts_sha256"  # strings: of each file of the corpus, but of a split that was left out
MAX_TEXTS = 1000  # a corpus of more files goes without


def texts_seen(path: Path) -> list[str]:
    """Return the digests of the files that a memory was trained on, or that an index holds; [] where it has none.

    Raises MissingFileError and ModelFileError for a GGUF that cannot be read.
    """
    with Header(path) as header:
        found = header.strings(TEXTS) if TEXTS in header.entries else []
        return [digest.decode("utf-8", "replace") for digest in found]
