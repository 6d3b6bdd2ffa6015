"""A document index as a GGUF: token ids, a suffix array over them, and which documents they are. The file has the text.

Layout of the tokens: each document in turn, and END after each. `prefixes` is the suffix array of the tokens read
backwards: positions of next tokens, sorted by what stands before them, the nearest token first. So one binary search
finds the longest match that ends a context (mixture/match.py). The file is mapped: the disk keeps what no lookup needs.

A replaced file (renamed over) keeps serving its old content. Where something shortens it in place, check_whole() says
so. Knows nothing of models and of how a match becomes a distribution.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from memdec_edge.errors import ModelFileError, PairingError, RoleError
from memdec_edge.files import atomic_path
from memdec_edge.gguf import metadata, origin
from memdec_edge.gguf.header import DAMAGED, STRING, Header, Scalar

ARCHITECTURE = "memdec-index"  # llama.cpp knows none of this name, and refuses the file
ROLE = "index"
VERSION = 1  # of the layout
LAYOUT_VERSION = "memdec_edge.index.version"
DOCUMENTS = "memdec_edge.index.documents"  # strings: a name for each document
TRUST = "memdec_edge.index.trust"  # f32 for each class of match length
TOKENS_TENSOR, PREFIXES_TENSOR, STARTS_TENSOR = "index.tokens", "index.prefixes", "index.starts"
INT16, INT32, INT64 = 25, 26, 27  # enum ggml_type; the numbers are unsigned all the same
N_TRUST = 8  # classes of match length; mixture/match.py has them
MOST_TOKENS = 2**31 - 1
MOST_DOCUMENTS = 2**24  # header.MAX_ELEMENTS

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Positions = npt.NDArray[np.uint32]


def token_type(n_vocab: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest type for a vocabulary's ids; its largest number is END."""
    return np.uint16 if n_vocab <= np.iinfo(np.uint16).max else np.uint32


def tokenizer_of(model: Path | str) -> tuple[str, int]:
    """Digest and number of tokens of a GGUF's tokenizer. Raises MissingFileError and ModelFileError."""
    with Header(model) as header:
        return metadata.tokenizer_digest(header.strings("tokenizer.ggml.tokens"))


class Place(NamedTuple):
    """Where a token stands."""

    document: str
    offset: int  # tokens from the document's first


class IndexFile:
    """An open index. Arrays are views of the file, and keep it mapped also after close().

    tokens    uint16 or uint32 [n]: the documents' ids, END (the type's largest number) after each document
    prefixes  uint32 [m]: each position with a token before it in the same document, by the text before it
    starts    uint64 [n_documents + 1]: where each document begins; the last is n
    trust     float32 [N_TRUST]: the index's weight by class of match length, relative to the longest; rising, 1 at last
    digest, n_vocab: of the tokenizer, as metadata.tokenizer_digest() gives them; every id is below n_vocab
    metadata  every single value of the header
    """

    def __init__(self, path: Path | str) -> None:
        header = self._header = Header(path)
        try:
            self._read(header)
        except BaseException:
            header.close()
            raise

    def _read(self, header: Header) -> None:
        self.path = header.path
        self.metadata: dict[str, Scalar] = metadata.single_values(header)
        facts = metadata.MemoryMetadata.from_gguf(self.path, self.metadata)
        if facts.role != ROLE:
            raise RoleError(self.path, facts.role, "document index", "make one with memdec-edge index")
        if (version := self.metadata.get(LAYOUT_VERSION)) != VERSION:
            raise ModelFileError(
                self.path, f"{LAYOUT_VERSION} is {version!r:.40}, this version knows {VERSION}; make the index again"
            )
        self.digest, self.n_vocab = facts.tokenizer_sha256, facts.tokenizer_n_tokens or 0
        self.domain = facts.domain
        self.license = str(self.metadata.get("general.license", ""))
        self.trust = np.array(header.numbers(TRUST), np.float32)
        self.tokens: Tokens = self._array(TOKENS_TENSOR, {INT16: "<u2", INT32: "<u4"})
        self.prefixes: Positions = self._array(PREFIXES_TENSOR, {INT32: "<u4"})
        self.starts: npt.NDArray[np.uint64] = self._array(STARTS_TENSOR, {INT64: "<u8"})
        self._check()

    @classmethod
    def open(cls, path: Path | str) -> "IndexFile":
        """Map an index.

        Raises MissingFileError, RoleError for a GGUF that is no index, and ModelFileError for a damaged one. That
        the arrays are right, indexing/verify.py finds out, which reads them all.
        """
        return cls(path)

    def __enter__(self) -> "IndexFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go; it stays mapped while arrays of it are held elsewhere. The index is of no use afterwards."""
        self.tokens, self.prefixes, self.starts = (
            self.tokens[:0].copy(),
            self.prefixes[:0].copy(),
            self.starts[:0].copy(),
        )
        self._header.close()

    @property
    def n_documents(self) -> int:
        """How many documents there are."""
        return len(self.starts) - 1

    @cached_property
    def names(self) -> list[str]:
        """A name for each document; read when first asked for."""
        return [name.decode("utf-8", "replace") for name in self._header.strings(DOCUMENTS)]

    def place(self, position: int) -> Place:
        """The document that holds the token at a position in [0, n). Raises as check_whole()."""
        self.check_whole()
        document = int(np.searchsorted(self.starts, position, "right")) - 1
        return Place(self.names[document], position - int(self.starts[document]))

    def require_tokenizer(self, base: Path | str) -> None:
        """Raise PairingError unless the GGUF `base` has the tokenizer whose ids the index holds.

        Raises MissingFileError and ModelFileError where `base` cannot be read or has no tokenizer.
        """
        if tokenizer_of(base) != (self.digest, self.n_vocab):
            raise PairingError(
                base, self.path, "it holds the tokens of another tokenizer",
                f"index the documents for this base too: memdec-edge index DOCS -m {base} --out FILE",
            )  # fmt: skip

    def check_whole(self) -> None:
        """Raise ModelFileError where something cut the file short since open(): to read on would end the process.

        It takes .3 us; a file that is cut between this call and the reading still does harm.
        """
        if self._header.cut_short:
            raise ModelFileError(self.path, "was cut short while in use; make the index again and open it again")

    def _array(self, name: str, kinds: Mapping[int, npt.DTypeLike]) -> npt.NDArray[Any]:
        found = self._header.array(name, kinds)
        if found.ndim != 1:
            raise ModelFileError(self.path, f"the tensor {name} has {found.ndim} dimensions and not one; {DAMAGED}")
        return found

    def _check(self) -> None:
        """Raise ModelFileError for what can be told in a moment; the kernels bear the rest."""
        if problem := self._problem():
            raise ModelFileError(self.path, f"{problem}; {DAMAGED}")

    def _problem(self) -> str:
        n, n_documents, starts = len(self.tokens), len(self.starts) - 1, self.starts
        if n > MOST_TOKENS:
            return f"it has {n:,} tokens, more than {MOST_TOKENS:,}"
        if len(self.prefixes) > n:
            return f"it has {len(self.prefixes):,} prefixes for {n:,} tokens"
        if n_documents < 1 or starts[0] != 0 or starts[-1] != n or not (starts[1:] > starts[:-1]).all():
            return "its documents do not follow each other from the first token to the last"
        names = self._header.entries.get(DOCUMENTS)
        if names is None or names.kind != STRING or names.count != n_documents:
            return f"{DOCUMENTS} does not name its {n_documents:,} documents"
        trust = self.trust
        if trust.shape != (N_TRUST,) or not (trust[0] >= 0 and trust[-1] <= 1 and (trust[1:] >= trust[:-1]).all()):
            return f"{TRUST} is not {N_TRUST} numbers from 0 to 1 that rise"
        if not 0 < self.n_vocab <= np.iinfo(self.tokens.dtype).max:
            return f"{metadata.TOKENIZER_N_TOKENS} is {self.n_vocab}, too many for its tokens' type"
        return ""


def write_index(
    path: Path, *, tokens: Tokens, prefixes: Positions, starts: npt.NDArray[np.uint64], names: Sequence[str],
    trust: Sequence[float], digest: str, n_vocab: int, name: str = "", domain: str = "", license: str = "",
    texts: Sequence[str] = (), base: Mapping[str, str | int] | None = None,
) -> None:  # fmt: skip
    """Write an index, atomically; arrays as IndexFile has them, `name` for general.name, `texts` for origin.TEXTS.

    base: keys that say which base's tokenizer it has, as metadata.base_model() gives them.

    Raises OutputError, and ExistingOutputError for what is no regular file.
    """
    from gguf.constants import GGMLQuantizationType as Kind

    from memdec_edge.gguf.writer import GgufFile

    assert len(starts) == len(names) + 1 <= MOST_DOCUMENTS + 1
    assert len(tokens) <= MOST_TOKENS
    file = GgufFile()
    file.add("general.architecture", ARCHITECTURE)
    file.add("general.type", ROLE)
    file.add("general.name", name or path.stem)
    if license:
        file.add("general.license", license)
    for key, value in (base or {}).items():
        file.add(key, value)
    file.add(metadata.SCHEMA_VERSION, metadata.SCHEMA)
    file.add(metadata.ROLE, ROLE)
    file.add(LAYOUT_VERSION, VERSION)
    if domain:
        file.add(metadata.DOMAIN, domain)
    file.add(metadata.TOKENIZER_SHA256, digest)
    file.add(metadata.TOKENIZER_N_TOKENS, n_vocab)
    if texts:
        file.add(origin.TEXTS, list(texts))
    file.add(TRUST, [float(weight) for weight in trust])
    file.add(DOCUMENTS, list(names))
    file.add_tensor(TOKENS_TENSOR, tokens.shape, Kind.I16 if tokens.dtype == np.uint16 else Kind.I32)
    file.add_tensor(PREFIXES_TENSOR, prefixes.shape, Kind.I32)
    file.add_tensor(STARTS_TENSOR, starts.shape, Kind.I64)
    with atomic_path(path) as part:
        file.write(part, (_pieces(array) for array in (tokens, prefixes, starts)), lambda _: None)


def _pieces(array: npt.NDArray[np.unsignedinteger]) -> Iterator[npt.NDArray[np.unsignedinteger]]:
    """An array as the file has it, little-endian, some MB at a time, so that Ctrl-C is heard."""
    for start in range(0, len(array), 1 << 20):
        piece = array[start : start + (1 << 20)]
        yield piece.astype(piece.dtype.newbyteorder("<"), copy=False)
