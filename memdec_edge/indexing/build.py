"""Documents into an index GGUF: read, order, measure the trust, write. Knows nothing of terminals and of mixing."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdec_edge.documents import Corpus, file_digests, find_files, require_training, say_left_out
from memdec_edge.errors import CorpusError
from memdec_edge.files import refuse_existing, sha256
from memdec_edge.gguf.index_file import Positions, Tokens, tokenizer_of, write_index
from memdec_edge.gguf.metadata import base_model
from memdec_edge.gguf.origin import MAX_TEXTS, texts_seen
from memdec_edge.indexing.sort import sorted_prefixes
from memdec_edge.indexing.tokens import Packed, is_gguf, pack
from memdec_edge.indexing.trust import Part, measured_trust
from memdec_edge.llama.model import Model
from memdec_edge.options import IndexOptions
from memdec_edge.progress import progress

PREFIX = "memdec-"  # files of this package are told from models by their name
HELD_OUT = "named as a validation or test file"


@dataclass(frozen=True)
class IndexReport:
    """What was indexed, and how long it took."""

    path: Path
    n_documents: int
    n_tokens: int
    n_bytes: int  # of the file
    seconds: float  # all
    seconds_sorting: float
    trust: tuple[float, ...]  # by class of match length
    trust_from: str  # which documents it was measured on
    left_out: dict[str, str]  # name of a file that is not indexed -> why
    warnings: tuple[str, ...]


def build_index(options: IndexOptions) -> IndexReport:
    """Index documents for a base's tokenizer, and write the index to `options.out`; what fails leaves nothing there.

    Takes 12 bytes of memory for each token, 14 where a vocabulary has over 65,535 tokens, and the text of one file.
    Raises MissingFileError, CorpusError for text that cannot be read, is missing or too much, ModelFileError for a base
    that is none, PairingError for an index of another tokenizer among the documents, ExistingOutputError, OutputError.
    """
    started = time.monotonic()
    refuse_existing(options.out, options.overwrite)
    corpora = [find_files(path) for path in options.sources]
    for corpus in corpora:
        require_training(corpus)
        held_out = (files for split, files in corpus.files.items() if split != "train")
        corpus.left_out |= {file.name: HELD_OUT for files in held_out for file in files}
        say_left_out(corpus)
    with closing(Model(options.base, vocab_only=True)) as base:
        digest, n_vocab = tokenizer_of(base.path)
        packed, valid = pack(options.documents, corpora, base, n_vocab)
    tokens, starts = packed.tokens, np.array(packed.starts, np.uint64)
    before_sorting = time.monotonic()
    with progress("sorting", len(tokens), "tokens") as advance:
        prefixes = sorted_prefixes(tokens, n_vocab, advance)
    seconds_sorting = time.monotonic() - before_sorting
    if not len(prefixes):
        raise CorpusError(options.documents, "no document of it has two tokens; give more text")
    trust, trust_from = _trust(options, tokens, prefixes, starts, valid)
    write_index(
        options.out, tokens=tokens, prefixes=prefixes, starts=starts, names=packed.names, trust=trust.tolist(),
        digest=digest, n_vocab=n_vocab, domain=options.domain, license=options.license,
        texts=_texts(corpora, options.copies), base=base_model(options.base),
    )  # fmt: skip
    return IndexReport(
        path=options.out,
        n_documents=len(packed.names),
        n_tokens=len(tokens),
        n_bytes=options.out.stat().st_size,
        seconds=time.monotonic() - started,
        seconds_sorting=seconds_sorting,
        trust=tuple(trust.tolist()),
        trust_from=trust_from,
        left_out={name: reason for corpus in corpora for name, reason in corpus.left_out.items()},
        warnings=_warnings(options.out),
    )


def _texts(corpora: list[Corpus], copies: Sequence[Path]) -> list[str]:
    """Digests of the files that are indexed, of copies, and of what an index among them holds; [] for too many."""
    found = {sha256(path) for path in copies}
    for corpus in corpora:
        indexed = [file for file in corpus.files["train"] if file.name not in corpus.left_out]
        if len(indexed) > MAX_TEXTS:
            return []
        holds_index = corpus.is_one_file and is_gguf(corpus.path)
        found.update(texts_seen(corpus.path) if holds_index else file_digests(indexed).values())
    return sorted(found) if len(found) <= MAX_TEXTS else []


def _trust(
    options: IndexOptions, tokens: Tokens, prefixes: Positions, starts: npt.NDArray[np.uint64], valid: Packed
) -> tuple[npt.NDArray[np.float32], str]:
    """Trust, and what it was measured on: a validation split, else a share of the documents, left out for the moment.

    Of a single document its end is left out. The order of the other prefixes stays what it is.
    """
    if valid.names:
        documents = [valid.tokens[a : b - 1] for a, b in zip(valid.starts[:-1], valid.starts[1:], strict=True)]
        measured = measured_trust(Part(tokens, prefixes, valid.n_vocab), documents)
        return measured, f"{len(documents):,} documents for validation"
    spans = np.stack([starts[:-1], starts[1:] - 1], 1).astype(np.int64)
    if len(spans) == 1:
        spans[0, 0] = spans[0, 1] - int(options.held_out * len(tokens))
    order = np.random.default_rng(options.seed).permutation(len(spans))
    chosen = spans[order[: max(1, round(options.held_out * len(spans)))]] if options.held_out else spans[:0]
    held_out = np.zeros(len(tokens), bool)
    for start, end in chosen:
        held_out[start:end] = True
    left = prefixes[~held_out[prefixes]]
    if not len(left) or not len(chosen):
        return measured_trust(Part(tokens, left, valid.n_vocab), []), "no document, since there are too few"
    measured = measured_trust(Part(tokens, left, valid.n_vocab), (tokens[start:end] for start, end in chosen))
    return measured, f"{len(chosen):,} of the documents, left out"


def _warnings(out: Path) -> tuple[str, ...]:
    if out.name.startswith(PREFIX):
        return ()
    return (f"the name of an index should start with {PREFIX}: {PREFIX}{out.name}",)
