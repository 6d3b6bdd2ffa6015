"""A digest by which a model file is known again: of its header and of pieces of its weights.

Weights that were trained further, quantised otherwise or merged differ nearly everywhere, so pieces tell them apart in
milliseconds, where all of a file would take seconds. It is no proof against a forger. Knows nothing of tensors.
"""

import hashlib
from pathlib import Path

from memdec_edge.gguf.parts import files

HEAD, PIECE, PIECES = 1 << 20, 4096, 1024  # bytes, bytes, a file


def fingerprint(path: Path) -> str:
    """The hex digest of a GGUF, all its parts. Raises MissingFileError and ModelFileError."""
    digest = hashlib.sha256()
    for file in files(path):
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as opened:
            digest.update(opened.read(HEAD))
            for number in range(PIECES if size > HEAD else 0):
                opened.seek(HEAD + (size - HEAD - PIECE) * number // PIECES if size > HEAD + PIECE else HEAD)
                digest.update(opened.read(PIECE))
    return digest.hexdigest()
