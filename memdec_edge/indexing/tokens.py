"""Documents as one run of tokens with an END after each. Knows nothing of how they are ordered.

A document is [BOS] tokens [EOS], as training packs it: BOS where the tokenizer adds one, EOS where it has one.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memdec_edge.documents import NO_TEXT, numbered_documents, split_files
from memdec_edge.errors import CorpusError
from memdec_edge.files import shown_name
from memdec_edge.gguf.header import MAGIC
from memdec_edge.gguf.index_file import MOST_DOCUMENTS, MOST_TOKENS, IndexFile, Tokens, token_type
from memdec_edge.llama.model import Model
from memdec_edge.progress import progress

VALID = "valid"  # the split that the trust is measured on, where a corpus names one


class Source(NamedTuple):
    """A file of documents."""

    path: Path
    name: str  # how its documents are called
    split: str  # of documents.SPLITS


@dataclass
class Packed:
    """Documents as an index holds them; it grows in place, since parts that are joined would be held twice."""

    n_vocab: int
    ids: "array[int]" = field(init=False)
    starts: list[int] = field(default_factory=lambda: [0])
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = array(np.dtype(token_type(self.n_vocab)).char)
        self.end = int(np.iinfo(token_type(self.n_vocab)).max)

    @property
    def tokens(self) -> Tokens:
        """The ids, without a copy; nothing can be added while they are held."""
        return np.frombuffer(self.ids, np.uint16) if self.ids.itemsize == 2 else np.frombuffer(self.ids, np.uint32)

    def add(self, source: Path, name: str, document: list[int] | Tokens) -> None:
        """Append a document. Raises CorpusError, which names `source`, where an index holds no more."""
        if isinstance(document, list):
            self.ids.extend(document)
        else:
            self.ids.frombytes(document.astype(token_type(self.n_vocab), copy=False).tobytes())
        self.ids.append(self.end)
        self.starts.append(len(self.ids))
        self.names.append(name)
        if len(self.ids) > MOST_TOKENS or len(self.names) > MOST_DOCUMENTS:
            most = f"{MOST_TOKENS:,} tokens and {MOST_DOCUMENTS:,} documents"
            raise CorpusError(source, f"an index holds at most {most}; divide the documents among several indexes")


def sources_of(paths: Iterable[Path]) -> list[Source]:
    """The files of documents, each with its split: train for all that is to be indexed.

    Raises MissingFileError, and CorpusError where there is no text file.
    """
    return [
        Source(file, file.relative_to(path).as_posix() if path.is_dir() else shown_name(file), split)
        for path in paths
        for split, files in split_files(path).items()
        for file in files
    ]


def pack(where: Path, sources: list[Source], base: Model, digest: str, n_vocab: int) -> tuple[Packed, Packed]:
    """The documents to index, and those of validation splits; test splits are not read.

    Raises CorpusError, which names `where`, for no text and for more than an index holds, what numbered_documents()
    raises, and PairingError for an index among the sources that has another tokenizer.
    """
    packed = {"train": Packed(n_vocab), VALID: Packed(n_vocab)}
    sources = [source for source in sources if source.split in packed]
    total = sum(source.path.stat().st_size for source in sources)
    with progress("reading", max(total, 1), "bytes") as advance:
        for source in sources:
            for name, document in _documents(source, base):
                packed[source.split].add(source.path, name, document)
            advance(source.path.stat().st_size)
    if not packed["train"].names:
        raise CorpusError(where, NO_TEXT)
    return packed["train"], packed[VALID]


def _documents(source: Source, base: Model) -> Iterator[tuple[str, list[int] | Tokens]]:
    """Name and ids of each document of a file."""
    if _is_gguf(source.path):
        with IndexFile.open(source.path) as index:
            index.require_tokenizer(base.path)
            for name, start, end in zip(index.names, index.starts[:-1], index.starts[1:], strict=True):
                yield name, index.tokens[int(start) : int(end) - 1]
        return
    head, tail = [base.bos] * base.add_bos, [base.eos] * (base.eos >= 0)
    for number, text in numbered_documents(source.path):
        name = f"{source.name}:{number}" if number else source.name
        yield name, [*head, *base.tokenize(text, add_special=False, parse_special=False), *tail]


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False  # a pipe, say
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC
