"""Hostile index files from a seed: bytes, keys and tensors changed, arrays that lie, ends cut off.

`run_case` is one case: the file is opened, searched, verified, read for its sources, or refused with a typed error.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from memdec_edge.errors import MemdecError, ModelFileError
from memdec_edge.gguf.header import STRING
from memdec_edge.gguf.index_file import IndexFile
from memdec_edge.indexing.verify import verify
from memdec_edge.llama.model import Model
from memdec_edge.mixture.match import Matcher
from memdec_edge.mixture.rows import LONGEST
from tests.support.gguf_mutations import CATALOGUE, INTEGERS
from tests.support.indexes import index_file, indexed
from tests.support.mutations import damaged_bytes
from tests.support.raw_gguf import BOOL, FLOAT32, UINT32, RawGguf, entry, read

KINDS = ("bytes", "keys", "tensors", "arrays", "end")
N_VOCAB = {"narrow": 40, "wide": 70_000}


@dataclass(frozen=True)
class Originals:
    """Sound indexes, of ids in 16 and in 32 bits."""

    documents: list[list[int]]
    files: dict[str, Path]


def originals(folder: Path) -> Originals:
    """Write them into `folder`."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 40, rng.integers(1, 150)).tolist() for _ in range(12)] + [[1, 2] * 100] * 2
    files = {name: index_file(folder / f"{name}.gguf", documents, n_vocab) for name, n_vocab in N_VOCAB.items()}
    return Originals(documents, files)


def run_case(kind: str, seed: int, whole: Originals, scratch: Path) -> str:
    """Make the mutant and use it: "accepted", or which refusal it met. Anything but a typed error is raised."""
    random = Random(f"{kind} {seed}")
    path = scratch / "mutant-index.gguf"
    name = random.choice(sorted(N_VOCAB))
    if kind == "arrays":
        _lying(random, whole, name, path)
    elif kind in ("keys", "tensors"):
        file = read(whole.files[name])
        for _ in range(random.choice((1, 1, 2))):
            random.choice(KEY_EDITS if kind == "keys" else TENSOR_EDITS)(random, file)
        file.write(path)
    else:
        data = whole.files[name].read_bytes()
        header = data.index(b"index.starts") + 40
        cut = random.randrange(len(data)) if kind == "end" else len(data)
        path.write_bytes(data[:cut] if kind == "end" else damaged_bytes(random, data, random.choice((64, header, cut))))
    if random.random() < 0.05:  # a trial in a process of its own takes a second
        with suppress(MemdecError):
            Model(path, vocab_only=True).close()
    try:
        return use(path, random, whole)
    except MemdecError as error:
        message = str(error)
        assert message, "an error says something"
        assert "\n" not in message, f"an error is one line: {message!r}"
        return "refused"


def use(path: Path, random: Random, whole: Originals) -> str:
    """Search for what the documents hold and for noise, ask where it stands; "accepted", or "found out" by verify()."""
    with IndexFile.open(path) as index:
        matcher = Matcher(index)
        for _ in range(8):
            document = random.choice(whole.documents)
            matcher.extend(document[: random.randrange(len(document) + 1)])
            if random.random() < 0.3:
                matcher.extend(random.choices((0, 1, 5, 39, 65_535, 70_000, -1, 2**31 - 1), k=3))
            match = matcher.match()
            assert 0 <= match.length <= LONGEST
            assert len(match.ids) == len(match.probs)
            assert all(0 <= token < index.n_vocab for token in match.ids)
            if match.where >= 0:
                index.place(match.where)
        try:
            verify(index)
        except ModelFileError:
            return "found out"
    return "accepted"


# --- keys and tensors ---------------------------------------------------------------------------------------------


def _set_key(random: Random, file: RawGguf) -> None:
    own = [old.key.decode() for old in file.entries]
    key = random.choice(own) if random.random() < 0.8 else random.choice(CATALOGUE).replace("{arch}", "memdec-index")
    kind = random.choice((UINT32, FLOAT32, BOOL, STRING))
    values: dict[int, tuple[Any, ...]] = {
        UINT32: tuple(value for value in INTEGERS if 0 <= value < 2**32), FLOAT32: (0.0, -1.0, float("nan"), 1e38),
        BOOL: (True, False), STRING: ("", "index", "memory", "model", "llama", "x" * 300),
    }  # fmt: skip
    value = random.choice(values[kind])
    count = random.choice((0, 1, 7, 8, 9, 14))
    file.entries = [old for old in file.entries if old.key.decode() != key]
    file.entries.append(entry(key, [value] * count if random.random() < 0.4 else value, kind))


def _drop_key(random: Random, file: RawGguf) -> None:
    if file.entries:
        del file.entries[random.randrange(len(file.entries))]


def _reshape(random: Random, file: RawGguf) -> None:
    at = random.randrange(len(file.tensors))
    old = file.tensors[at]
    edge = random.choice([value for value in INTEGERS if value >= 0])
    shape = random.choice(((edge,), (*old.shape, 1), (1, *old.shape), (), (old.shape[0] - 1,) if old.shape else ()))
    file.tensors[at] = replace(old, shape=shape)


def _retype(random: Random, file: RawGguf) -> None:
    at = random.randrange(len(file.tensors))
    file.tensors[at] = replace(file.tensors[at], kind=random.choice((0, 1, 8, 24, 25, 26, 27, 28, 2**31)))


def _move(random: Random, file: RawGguf) -> None:
    at = random.randrange(len(file.tensors))
    file.tensors[at] = replace(file.tensors[at], offset=random.choice((0, 1, 2, 4, 32, 2**31, 2**40, 2**64 - 32)))


def _swap(random: Random, file: RawGguf) -> None:
    a, b = random.randrange(len(file.tensors)), random.randrange(len(file.tensors))
    one, other = file.tensors[a], file.tensors[b]
    file.tensors[a], file.tensors[b] = replace(one, name=other.name), replace(other, name=one.name)


def _noise(random: Random, file: RawGguf) -> None:
    at = random.randrange(len(file.tensors))
    file.tensors[at] = replace(file.tensors[at], data=random.randbytes(len(file.tensors[at].data)))


KEY_EDITS: tuple[Callable[[Random, RawGguf], None], ...] = (_set_key, _set_key, _set_key, _drop_key)
TENSOR_EDITS: tuple[Callable[[Random, RawGguf], None], ...] = (_reshape, _retype, _move, _swap, _noise, _noise)


# --- arrays that lie ----------------------------------------------------------------------------------------------


def _lying(random: Random, whole: Originals, name: str, path: Path) -> None:
    """Prefixes that point outside or are in no order, documents that do not end, ids that no vocabulary has."""
    part = indexed(whole.documents, N_VOCAB[name])
    rng = np.random.default_rng(random.randrange(2**32))
    tokens, prefixes = part.tokens.copy(), part.prefixes.copy()
    some = rng.integers(0, len(prefixes), random.choice((1, 3, 50, len(prefixes))))
    edit = random.choice(("outside", "shuffle", "reverse", "same", "ids", "no end", "swap"))
    if edit == "outside":
        prefixes[some] = rng.choice([0, len(tokens), len(tokens) + 1, 2**31, 2**32 - 1], len(some))
    elif edit == "shuffle":
        prefixes = rng.permutation(prefixes)
    elif edit == "reverse":
        prefixes = prefixes[::-1].copy()
    elif edit == "same":
        prefixes[some] = prefixes[some[0]]
    elif edit == "swap":
        prefixes[some] = prefixes[some[::-1]]
    elif edit == "ids":
        tokens[some] = rng.integers(0, np.iinfo(tokens.dtype).max, len(some), endpoint=True)
    else:
        tokens[tokens == np.iinfo(tokens.dtype).max] = 1
    index_file(path, whole.documents, N_VOCAB[name], tokens=tokens, prefixes=prefixes)
