"""A corpus that is tokenized already: files of token ids, and whose tokenizer made them.

    NAME.npy     uint16 or uint32 [n]: documents one after the other, each ended by EOS
    NAME.json    {"tokenizer_sha256": vocabulary_digest() of the model that the ids are for, "n_vocab": its tokens}

A folder holds train.npy, and perhaps valid.npy and test.npy. A single file is training text. Ids are taken in their
order, and no split is made of them: the program that makes ids divides documents, too. Knows nothing of caches.
"""

import json
import re
import zipfile
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import Any

import numpy as np

from memdec_edge.documents import SPLITS, Corpus, File, find_files, say_left_out
from memdec_edge.errors import CorpusError
from memdec_edge.files import atomic_path, write_text
from memdec_edge.notes import note

from .corpus import Tokens
from .vocabulary import read_vocabulary, vocabulary_digest

SUFFIX, DIGEST, N_VOCAB = ".npy", "tokenizer_sha256", "n_vocab"
TYPES = (np.dtype(np.uint16), np.dtype(np.uint32))
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    OverflowError,
    SyntaxError,
    TokenError,
    zipfile.BadZipFile,
)  # of strange bytes
AGAIN = "tokenize the text again"


def find_corpus(path: Path) -> Corpus:
    """The files of a corpus by split, of token ids or of text. Raises as find_files() does."""
    return _id_files(path) or find_files(path)


def holds_ids(corpus: Corpus) -> bool:
    """Whether find_corpus() found token ids."""
    return any(file.inside.suffix == SUFFIX for file in corpus.all)


def say_ids(corpus: Corpus) -> None:
    """Say on stderr which files of ids serve which split, and which files none."""
    serve = ", ".join(f"{split} from {files[0].inside}" for split, files in corpus.files.items())
    note(f"text: token ids, {serve}")
    say_left_out(corpus)


def read_ids(file: Path, teacher: Path, limit: int = 0) -> Tokens:
    """Token ids of a file NAME.npy, uint32 [n]; at most `limit` unless it is 0.

    Raises CorpusError for what is no array of ids, for ids of another tokenizer than the teacher's, and for an id
    that the teacher's vocabulary lacks.
    """
    vocabulary = read_vocabulary(teacher)
    _check_tokenizer(file, vocabulary)
    try:
        ids: Any = np.load(file, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise CorpusError(file, f"is no array of NumPy's, or a damaged one ({_line(error)}); {AGAIN}") from error
    if not isinstance(ids, np.ndarray) or ids.dtype not in TYPES or ids.ndim != 1:
        found = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, np.ndarray) else "several arrays"
        raise CorpusError(file, f"holds {found}; token ids are uint16 or uint32, in one dimension")
    tokens: Tokens = ids[: limit or None].astype(np.uint32)
    if len(tokens) and tokens.max() >= len(vocabulary):
        there = f"the vocabulary has {len(vocabulary)} tokens"
        raise CorpusError(file, f"holds the id {tokens.max()}, and {there}; {AGAIN}")
    return tokens


def write_ids(path: Path, ids: Any, model: Path) -> None:
    """Write ids of a model's tokens as NAME.npy, and NAME.json beside it. Raises CorpusError and OutputError.

    path   NAME.npy
    ids    of documents one after the other, each ended by EOS; integers that the model's vocabulary has
    model  GGUF or Hugging Face folder
    """
    vocabulary = read_vocabulary(model)
    n_vocab, array = len(vocabulary), np.asarray(ids)
    if array.size and not 0 <= array.min() <= array.max() < n_vocab:
        raise CorpusError(path, f"ids from {array.min()} to {array.max()}, and the vocabulary has {n_vocab} tokens")
    with atomic_path(path) as part, part.open("wb") as file:
        np.save(file, array.astype(np.uint16 if n_vocab <= 1 << 16 else np.uint32))
    write_text(_facts(path), json.dumps({DIGEST: vocabulary_digest(vocabulary), N_VOCAB: n_vocab}) + "\n")


def _id_files(path: Path) -> Corpus | None:
    """The files of ids that a path names, each followed by its facts; None where it names none."""
    if path.is_dir():
        named = {split: path / f"{split}{SUFFIX}" for split in SPLITS}
    else:
        named = {"train": path} if path.suffix == SUFFIX else {}
    files = {split: file for split, file in named.items() if file.is_file()}
    if "train" not in files:
        return None
    parts = {split: [file, *(facts for facts in [_facts(file)] if facts.is_file())] for split, file in files.items()}
    found = {split: [File(part, PurePosixPath(part.name)) for part in some] for split, some in parts.items()}
    used = {part.name for some in parts.values() for part in some}
    others = sorted(file.name for file in path.iterdir() if file.name not in used) if path.is_dir() else []
    return Corpus(path, found, named=True, left_out=dict.fromkeys(others, f"train{SUFFIX} holds token ids"))


def _check_tokenizer(file: Path, vocabulary: list[str | None]) -> None:
    """Raise CorpusError unless the file beside `file` names the teacher's vocabulary."""
    facts, digest = _facts(file), vocabulary_digest(vocabulary)
    wanted = json.dumps({DIGEST: digest, N_VOCAB: len(vocabulary)})
    if not facts.is_file():
        reason = f"is missing, so nothing says whose ids {file.name} holds; where they are the teacher's"
        raise CorpusError(facts, f"{reason}, write {wanted}")
    try:
        named = str(json.loads(facts.read_text(encoding="utf-8"))[DIGEST])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        named = ""
    if not re.fullmatch("[0-9a-f]{64}", named):
        raise CorpusError(facts, f"does not say whose ids {file.name} holds; it must be like {wanted}")
    if named != digest:
        raise CorpusError(file, f"its ids are of the tokenizer {named}, and the teacher's is {digest}; {AGAIN}")


def _facts(file: Path) -> Path:
    return file.with_suffix(".json")


def _line(error: Exception) -> str:
    return str(error).split("\n")[0]
