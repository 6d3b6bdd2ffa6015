"""memdec_edge.gguf.index_file: what is written is read, what is damaged is refused, and llama.cpp wants none of it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memdec_edge.errors import MissingFileError, ModelFileError, PairingError, RoleError
from memdec_edge.gguf import index_file, metadata
from memdec_edge.gguf.index_file import IndexFile, Place, tokenizer_of
from memdec_edge.indexing.verify import verify
from memdec_edge.llama.model import Model
from memdec_edge.mixture.match import CLASSES, Matcher
from tests.conftest import Family
from tests.support.indexes import index_file as written
from tests.support.indexes import indexed
from tests.support.raw_gguf import RawGguf, entry, read

DOCUMENTS = [[1, 2, 3, 4], [5], [2, 3, 5, 5]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "memdec-x-index.gguf", DOCUMENTS, 9, domain="letters", license="CC0-1.0", name="x")


@pytest.mark.parametrize("n_vocab", [9, 65_535, 65_536, 262_144])
def test_what_is_written_is_read(tmp_path: Path, n_vocab: int) -> None:
    part = indexed(DOCUMENTS, n_vocab)
    path = written(tmp_path / "i.gguf", DOCUMENTS, n_vocab, domain="letters", license="CC0-1.0", name="x")
    with IndexFile.open(path) as index:
        assert index.tokens.dtype == (np.uint16 if n_vocab <= 65_535 else np.uint32)
        np.testing.assert_array_equal(index.tokens, part.tokens)
        np.testing.assert_array_equal(index.prefixes, part.prefixes)
        assert index.starts.tolist() == [0, 5, 7, 12]
        assert (index.n_documents, index.names) == (3, ["0.txt", "1.txt", "2.txt"])
        assert (index.digest, index.n_vocab, index.domain, index.license) == ("0" * 64, n_vocab, "letters", "CC0-1.0")
        np.testing.assert_array_equal(index.trust, np.array([0.1] * 7 + [1], np.float32))
        assert index.metadata["general.name"] == "x"
        verify(index)


def test_a_position_is_a_place_in_a_document(path: Path) -> None:
    with IndexFile.open(path) as index:
        places = [index.place(position) for position in (0, 3, 5, 7, 10)]
    assert places == [
        Place("0.txt", 0), Place("0.txt", 3), Place("1.txt", 0), Place("2.txt", 0), Place("2.txt", 3),
    ]  # fmt: skip


def test_the_table_of_trust_has_a_number_for_each_class() -> None:
    assert len(CLASSES) == index_file.N_TRUST


def test_llama_cpp_refuses_an_index_and_goes_on(path: Path) -> None:
    code = (
        "import llama_cpp, sys; params = llama_cpp.llama_model_default_params(); params.vocab_only = len(sys.argv) > 2;"
        "print(llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), params))"
    )
    for more in ([], ["vocabulary"]):
        done = subprocess.run([sys.executable, "-c", code, path, *more], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "None\n")
        assert "unknown model architecture: 'memdec-index'" in done.stderr


def test_a_model_is_no_index_and_an_index_no_model(path: Path, family: Family) -> None:
    with pytest.raises(
        RoleError, match=r"base\.gguf is a model, not a document index; make one with memdec-edge index"
    ):
        IndexFile.open(family.base)
    with pytest.raises(RoleError, match="is a memory, not a document index"):
        IndexFile.open(family.memory)
    with pytest.raises(RoleError, match=r"index\.gguf is a document index, not a model; give it as `memory`"):
        Model(path)


def test_a_base_of_another_tokenizer_is_refused_and_told_how(tmp_path: Path, family: Family) -> None:
    digest, n_vocab = tokenizer_of(family.base)
    own = written(tmp_path / "own.gguf", DOCUMENTS, n_vocab, digest=digest)
    with IndexFile.open(own) as index:
        index.require_tokenizer(family.base)
        index.require_tokenizer(family.padded)  # padding makes no difference
        for other in (family.stranger, family.renamed):
            with pytest.raises(
                PairingError, match="another tokenizer; index the documents for this base too: memdec-e"
            ):
                index.require_tokenizer(other)


# --- damage ---------------------------------------------------------------------------------------------------------


def changed(path: Path, change: Callable[[RawGguf], None]) -> Path:
    file = read(path)
    change(file)
    return file.write(path)


def with_entry(path: Path, key: str, value: Any, kind: int) -> Path:
    def change(file: RawGguf) -> None:
        file.entries = [old for old in file.entries if old.key != key.encode()]
        if value is not None:
            file.entries.append(entry(key, value, kind))

    return changed(path, change)


def test_a_file_that_is_not_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        IndexFile.open(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("key", "value", "kind", "reason"),
    [
        (index_file.LAYOUT_VERSION, 2, 4, "memdec_edge.index.version is 2, this version knows 1; make the index again"),
        (index_file.LAYOUT_VERSION, None, 4, "memdec_edge.index.version is None"),
        (metadata.SCHEMA_VERSION, 99, 4, "update memdec-edge"),
        (metadata.TOKENIZER_N_TOKENS, 65_536, 4, "n_tokens is 65536, too many for its tokens' type"),
        (metadata.TOKENIZER_N_TOKENS, None, 4, "n_tokens is 0"),
        (index_file.TRUST, [0.5] * 7, 6, "trust is not 8 numbers from 0 to 1 that rise"),
        (index_file.TRUST, [0.5] * 7 + [0.4], 6, "that rise"),
        (index_file.TRUST, [float("nan")] * 8, 6, "that rise"),
        (index_file.TRUST, [0.1] * 7 + [1.5], 6, "from 0 to 1"),
        (index_file.DOCUMENTS, ["a"], 8, "does not name its 3 documents"),
        (index_file.DOCUMENTS, None, 8, "does not name its 3 documents"),
    ],
)
def test_keys_that_cannot_be_are_refused(path: Path, key: str, value: Any, kind: int, reason: str) -> None:
    with_entry(path, key, value, kind)
    with pytest.raises(ModelFileError, match=reason):
        IndexFile.open(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"starts": np.array([0, 7, 5, 12], np.uint64)}, "documents do not follow each other"),
        ({"starts": np.array([1, 5, 7, 12], np.uint64)}, "documents do not follow each other"),
        ({"starts": np.array([0, 5, 7, 13], np.uint64)}, "documents do not follow each other"),
        ({"starts": np.array([0, 5, 5, 12], np.uint64)}, "documents do not follow each other"),
        ({"prefixes": np.arange(13, dtype=np.uint32)}, "13 prefixes for 12 tokens"),
        ({"tokens": np.ones((3, 4), np.uint16)}, "index.tokens has 2 dimensions and not one"),
    ],
)
def test_tables_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        IndexFile.open(written(tmp_path / "i.gguf", DOCUMENTS, 9, **changes))


@pytest.mark.parametrize("name", ["index.tokens", "index.prefixes", "index.starts"])
def test_a_tensor_that_is_missing_or_outside_the_file_or_of_another_type_is_refused(path: Path, name: str) -> None:
    original = path.read_bytes()

    def drop(file: RawGguf) -> None:
        file.tensors = [tensor for tensor in file.tensors if tensor.name != name.encode()]

    with pytest.raises(ModelFileError, match=f"the tensor {name} is missing"):
        IndexFile.open(changed(path, drop))
    at = original.index(name.encode()) + len(name) + 4 + 8  # number of dimensions, and the one; type, offset
    for change, reason in (
        ((4, (2**40).to_bytes(8, "little")), "cut short"),
        ((4, (3).to_bytes(8, "little")), "between two numbers|cut short|documents|prefixes|names"),
        ((0, (6).to_bytes(4, "little")), "has the type 6"),
    ):
        offset, value = change
        path.write_bytes(original[: at + offset] + value + original[at + offset + len(value) :])
        with pytest.raises(ModelFileError, match=reason):
            IndexFile.open(path)


def test_every_truncation_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    last = whole.rindex((12).to_bytes(8, "little")) + 8  # the last start; padding follows
    for size in (*range(0, last, 7), last - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFileError):
            IndexFile.open(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"prefixes": np.array([3, 1, 2, 9, 10, 11, 8][:6], np.uint32)},
            "no token that follows|not in order|leave out",
        ),
        ({"prefixes": np.full(6, 12, np.uint32)}, "points to no token"),
        ({"prefixes": np.full(6, 2**32 - 1, np.uint32)}, "points to no token"),
        ({"prefixes": np.zeros(6, np.uint32)}, "points to no token"),
        ({"starts": np.array([0, 4, 7, 12], np.uint64)}, "ends elsewhere"),
        ({"tokens": np.array([*[1, 2, 3, 4, 65_535], 10, *[65_535, 2, 3, 5, 5, 65_535]], np.uint16)}, "token 10 at 5"),
    ],
)
def test_arrays_that_lie_are_found_out_by_reading_them(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with IndexFile.open(written(tmp_path / "i.gguf", DOCUMENTS, 9, **changes)) as index:
        with pytest.raises(ModelFileError, match=reason):
            verify(index)
        matcher = Matcher(index)  # and a lookup bears them
        for token in (1, 2, 3, 5, 5):
            matcher.extend([token])
            matcher.match()


def test_any_two_neighbours_in_the_wrong_order_are_found(tmp_path: Path) -> None:
    documents = [np.random.default_rng(0).integers(0, 3, 60).tolist(), [1, 1, 1, 1], [1, 1, 1, 1]]
    right = indexed(documents, 9).prefixes
    for i in range(len(right) - 1):
        wrong = right.copy()
        wrong[[i, i + 1]] = right[[i + 1, i]]
        with IndexFile.open(written(tmp_path / "i.gguf", documents, 9, prefixes=wrong)) as index:
            with pytest.raises(ModelFileError, match="not in order"):
                verify(index)


# --- files that change while they are open -------------------------------------------------------------------------


def test_a_file_that_is_replaced_serves_its_old_content(path: Path, tmp_path: Path) -> None:
    with IndexFile.open(path) as index:
        matcher = Matcher(index)
        written(path, [[7, 7, 7]], 9)  # as every file is written: renamed over
        matcher.extend([1, 2])
        assert matcher.match().ids.tolist() == [3]
        verify(index)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not cut a file that is mapped")
def test_a_file_that_is_cut_short_while_open_is_an_error_and_no_signal(path: Path) -> None:
    with IndexFile.open(path) as index:
        matcher = Matcher(index)
        matcher.extend([1, 2])
        os.truncate(path, 64)
        for use in (matcher.match, lambda: verify(index), index.check_whole):
            with pytest.raises(ModelFileError, match="was cut short while in use"):
                use()


def test_views_outlive_the_file(path: Path) -> None:
    index = IndexFile.open(path)
    tokens = index.tokens
    index.close()
    assert tokens[:4].tolist() == [1, 2, 3, 4]
    assert len(index.tokens) == 0
    shutil.rmtree(path.parent)
    assert tokens[:4].tolist() == [1, 2, 3, 4]
