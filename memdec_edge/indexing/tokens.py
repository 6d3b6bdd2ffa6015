"""Documents as one run of tokens with an END after each. Knows nothing of how they are ordered.

A document is [BOS] tokens [EOS], as training packs it: BOS where the tokenizer adds one, EOS where it has one.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path

import numpy as np

from memdec_edge.documents import NO_TEXT, Corpus, File, kind_of, read_files
from memdec_edge.errors import CorpusError
from memdec_edge.files import shown_name, shown_path
from memdec_edge.gguf.header import MAGIC
from memdec_edge.gguf.index_file import MOST_DOCUMENTS, MOST_TOKENS, IndexFile, Tokens, token_type
from memdec_edge.llama.model import Model
from memdec_edge.long_text import in_pieces
from memdec_edge.progress import progress

VALID = "valid"  # the split that the trust is measured on, where a corpus names one


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


def pack(where: Path, corpora: list[Corpus], base: Model, n_vocab: int) -> tuple[Packed, Packed]:
    """The documents to index, and those of validation splits; test splits are not read.

    Raises CorpusError, which names `where`, for no text and for more than an index holds, what read_files() raises, and
    PairingError for an index among the documents that has another tokenizer.
    """
    packed = {"train": Packed(n_vocab), VALID: Packed(n_vocab)}
    parts = [(corpus, split, corpus.files.get(split, [])) for corpus in corpora for split in packed]
    with progress("reading", max(sum(len(files) for _, _, files in parts), 1), "files") as advance:
        for corpus, split, files in parts:
            for path, documents in groupby(_documents(corpus, files, base), key=lambda document: document[0]):
                for _, name, ids in documents:
                    packed[split].add(path, name, ids)
                advance(1)
    if not packed["train"].names:
        raise CorpusError(where, NO_TEXT)
    return packed["train"], packed[VALID]


def _documents(corpus: Corpus, files: list[File], base: Model) -> Iterator[tuple[Path, str, list[int] | Tokens]]:
    """File, name and ids of each document of some files; a document of a table has its number behind the name."""
    if files and corpus.is_one_file and is_gguf(corpus.path):
        with IndexFile.open(corpus.path) as index:
            index.require_tokenizer(base.path)
            for name, start, end in zip(index.names, index.starts[:-1], index.starts[1:], strict=True):
                yield corpus.path, name, index.tokens[int(start) : int(end) - 1]
        return

    head, tail = [base.bos] * base.add_bos, [base.eos] * (base.eos >= 0)
    known, numbers = {file.name: file for file in files}, Counter[str]()
    for document in read_files(corpus, files):
        file, kind = known[document.source], kind_of(known[document.source])
        numbers[document.source] += 1
        name = shown_name(file.path) if corpus.is_one_file else shown_path(file.inside)
        numbered = f"{name}:{numbers[document.source]}" if kind and kind.rows else name
        yield file.path, numbered, [*head, *chain.from_iterable(in_pieces(document.text, base.encode)), *tail]


def is_gguf(path: Path) -> bool:
    """Return whether a file begins as a GGUF."""
    if not path.is_file():
        return False  # a pipe, say
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC
