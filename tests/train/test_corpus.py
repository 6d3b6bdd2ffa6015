"""train/corpus.py: reading, splitting, packing."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memdec_edge.documents import split_files
from memdec_edge.errors import CorpusError, MissingFileError
from memdec_edge.train.corpus import Encoder, pack, split_documents


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def encode(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def test_a_missing_corpus_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere: no such text file or folder; check the path"):
        split_files(tmp_path / "nowhere")


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(CorpusError) as caught:
        split_files(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no text in it; give .txt, .md or .jsonl files with some"


def test_a_corpus_of_white_space_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\t\n")
    with pytest.raises(CorpusError) as caught:
        split_documents(tmp_path, 0.1, 0.1, 0)
    assert str(caught.value) == f"{tmp_path}: no text in it; give .txt, .md or .jsonl files with some"


def test_text_that_is_not_utf8_names_file_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"abcd" + "é".encode("latin-1") + b"fg")
    with pytest.raises(CorpusError) as caught:
        split_documents(path, 0.1, 0.1, 0)
    assert str(caught.value).startswith(f"{path}: not UTF-8: byte 0xe9 at offset 4")


def test_a_jsonl_line_without_text_names_its_number(tmp_path: Path) -> None:
    path = tmp_path / "valid.jsonl"
    write_jsonl(tmp_path / "train.jsonl", ["fine"])
    path.write_text('{"text": "fine"}\n\n{"txt": "a"}\n')
    with pytest.raises(CorpusError) as caught:
        split_documents(tmp_path, 0.1, 0.1, 0)
    assert str(caught.value).startswith(f"{path}: line 3 ")


def test_splits_that_the_folder_names_are_used(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [f"{split} {i}" for i in range(5)])
    (tmp_path / "readme.md").write_text("no part of the corpus")
    splits = split_documents(tmp_path, 0.5, 0.5, 0)
    assert {split: sorted(texts) for split, texts in splits.items()} == {
        split: [f"{split} {i}" for i in range(5)] for split in ("train", "valid", "test")
    }


@example(count=3, valid=0.5, test=0.25, seed=0)
@given(count=st.integers(3, 60), valid=st.floats(0, 0.5), test=st.floats(0, 0.4), seed=st.integers(0, 99))
def test_a_split_by_document_loses_and_doubles_nothing(
    tmp_path_factory: pytest.TempPathFactory, count: int, valid: float, test: float, seed: int
) -> None:
    texts = [f"document {i}" for i in range(count)]
    path = write_jsonl(tmp_path_factory.mktemp("split") / "a.jsonl", texts)
    splits = split_documents(path, valid, test, seed)
    assert sorted(splits["train"] + splits["valid"] + splits["test"]) == sorted(texts)
    assert splits["train"]
    assert bool(splits["valid"]) == (valid > 0)
    assert bool(splits["test"]) == (test > 0)
    assert splits == split_documents(path, valid, test, seed)


def test_another_seed_splits_otherwise(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(50)])
    assert split_documents(path, 0.2, 0.2, 0)["valid"] != split_documents(path, 0.2, 0.2, 1)["valid"]


def test_a_single_document_gives_its_tail_to_the_other_splits(tmp_path: Path) -> None:
    text = " ".join(str(i) for i in range(1000))
    (tmp_path / "a.txt").write_text(text)
    splits = split_documents(tmp_path / "a.txt", 0.1, 0.1, 0)
    assert splits["train"][0] + splits["test"][0] + splits["valid"][0] == text
    assert 0.09 < len(splits["valid"][0]) / len(text) < 0.11
    assert 0.08 < len(splits["test"][0]) / len(text) < 0.1


def test_documents_are_packed_between_bos_and_eos() -> None:
    tokens = pack(["ab", "c"], Encoder(encode, 500, 501), 0)
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == [500, 97, 98, 501, 500, 99, 501]
    assert pack(["ab", "c"], Encoder(encode, None, 501), 0).tolist() == [97, 98, 501, 99, 501]


def test_a_token_limit_is_kept_to_the_token() -> None:
    assert pack(["abc"] * 200, Encoder(encode, None, 0), 301).tolist() == ([97, 98, 99, 0] * 200)[:301]
    assert pack([], Encoder(encode, 1, 2), 0).tolist() == []


@given(
    documents=st.lists(st.text(max_size=20), max_size=9),
    bos=st.none() | st.integers(300, 400),
    limit=st.integers(0, 60),
)
def test_packed_tokens_are_the_documents_one_after_the_other(documents: list[str], bos: int | None, limit: int) -> None:
    truth: list[int] = []
    for document in documents:
        truth += [*([] if bos is None else [bos]), *document.encode(), 2**32 - 1]
    tokens = pack(documents, Encoder(encode, bos, 2**32 - 1), limit)
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == (truth[:limit] if limit else truth)
