"""Validation and test parts: by character, whole families, tails of long documents."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memdec_edge.documents import split_documents
from memdec_edge.documents.divide import LEAST_TAIL, divide
from memdec_edge.errors import CorpusError

SHARES = {"valid": 0.05, "test": 0.05}


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def texts_of(path: Path, valid: float, test: float, seed: int = 0) -> dict[str, list[str]]:
    return {
        split: [document.text for document in some] for split, some in split_documents(path, valid, test, seed).items()
    }


def sizes(parts: dict[str, list[tuple[int, str]]]) -> dict[str, float]:
    total = sum(len(text) for part in parts.values() for _, text in part)
    return {name: sum(len(text) for _, text in part) / total for name, part in parts.items()}


@example(count=3, valid=0.5, test=0.25, seed=0)
@given(count=st.integers(3, 60), valid=st.floats(0, 0.5), test=st.floats(0, 0.4), seed=st.integers(0, 99))
def test_a_split_by_document_loses_and_doubles_nothing(
    tmp_path_factory: pytest.TempPathFactory, count: int, valid: float, test: float, seed: int
) -> None:
    texts = [f"document {i}" for i in range(count)]
    path = write_jsonl(tmp_path_factory.mktemp("split") / "a.jsonl", texts)
    splits = texts_of(path, valid, test, seed)
    assert sorted(splits["train"] + splits["valid"] + splits["test"]) == sorted(texts)
    assert splits["train"]
    assert bool(splits["valid"]) == (valid > 0)
    assert bool(splits["test"]) == (test > 0)
    assert splits == texts_of(path, valid, test, seed)


def test_another_seed_splits_otherwise(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(50)])
    assert texts_of(path, 0.2, 0.2, 0)["valid"] != texts_of(path, 0.2, 0.2, 1)["valid"]


def test_splits_that_the_folder_names_are_used(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [f"{split} {i}" for i in range(5)])
    (tmp_path / "readme.md").write_text("no part of the corpus")
    assert {split: sorted(texts) for split, texts in texts_of(tmp_path, 0.5, 0.5).items()} == {
        split: [f"{split} {i}" for i in range(5)] for split in ("train", "valid", "test")
    }


def test_a_single_document_gives_its_tail_to_the_other_splits(tmp_path: Path) -> None:
    text = " ".join(str(i) for i in range(1000))
    (tmp_path / "a.txt").write_text(text)
    splits = texts_of(tmp_path / "a.txt", 0.1, 0.1)
    assert splits["train"][0] + splits["test"][0] + splits["valid"][0] == text
    assert 0.09 < len(splits["valid"][0]) / len(text) < 0.11
    assert 0.09 < len(splits["test"][0]) / len(text) < 0.11


@pytest.mark.parametrize(
    "text",
    [
        "日本語の文章は空白なしで書かれる。" * 4000,
        "x " * 20 + "漢" * 70_000,
        "ไทย" * 20_000,
        "word " * 15_000,
        "a" * 60_000,
    ],
    ids=["Japanese", "blanks only at the beginning", "Thai", "English", "one run"],
)
def test_a_single_document_of_any_script_is_divided_about_90_5_5(text: str) -> None:
    parts = divide([text], [0], SHARES, 0)
    assert sizes(parts) == pytest.approx({"train": 0.9, "valid": 0.05, "test": 0.05}, abs=0.005)
    assert parts["train"][0][1] + parts["test"][0][1] + parts["valid"][0][1] == text


def test_japanese_is_cut_after_a_sentence() -> None:
    parts = divide(["日本語の文章は空白なしで書かれる。" * 4000], [0], SHARES, 0)
    assert all(text.endswith("。") for part in parts.values() for _, text in part)


def test_a_few_long_documents_are_not_given_away_whole() -> None:
    texts = [f"{name} " * 20_000 for name in ("one", "two", "six")]
    parts = divide(texts, [0, 1, 2], SHARES, 0)
    assert sizes(parts) == pytest.approx({"train": 0.9, "valid": 0.05, "test": 0.05}, abs=0.01)


def test_one_document_that_is_nearly_all_is_never_the_test_split() -> None:
    texts = ["long " * 100_000, *(f"short {i} " * 10 for i in range(9))]
    for seed in range(10):
        parts = divide(texts, list(range(10)), SHARES, seed)
        assert sizes(parts)["train"] == pytest.approx(0.9, abs=0.01)


def test_equal_documents_that_are_cut_are_cut_at_the_same_place() -> None:
    text = " ".join(str(i) for i in range(30_000))
    parts = divide([text, text], [0, 0], SHARES, 0)
    held_out = {part: {piece for _, piece in parts[part]} for part in SHARES}
    assert all(len(pieces) == 1 for pieces in held_out.values())
    assert not any(piece in head for pieces in held_out.values() for piece in pieces for _, head in parts["train"])


@given(
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3 * LEAST_TAIL)), min_size=1, max_size=20),
    seed=st.integers(0, 9),
)
def test_every_character_stays_and_no_family_is_in_two_parts_unless_it_is_cut(
    rows: list[tuple[int, int]], seed: int
) -> None:
    texts = [chr(97 + i) * size for i, (_, size) in enumerate(rows)]
    family = [number for number, _ in rows]
    parts = divide(texts, family, SHARES, seed)
    assert sum(len(text) for part in parts.values() for _, text in part) == sum(map(len, texts))
    whole = {name: {family[i] for i, text in part if text == texts[i]} for name, part in parts.items()}
    assert not whole["valid"] & whole["test"]
    assert not whole["train"] & (whole["valid"] | whole["test"])


def test_documents_that_occur_twice_stay_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [" ".join(f"{word}{i}" for word in "abcdefghijklmnop") for i in range(40)]
    path = write_jsonl(tmp_path / "a.jsonl", texts + [text.upper() + " again" for text in texts])
    splits = texts_of(path, 0.1, 0.1)
    names = [{text.lower().removesuffix(" again") for text in part} for part in splits.values()]
    assert sum(map(len, names)) == len(set.union(*names)) == 40
    said = capsys.readouterr().err
    assert "80 of 80 documents are like others, exactly or nearly; these stay together" in said
    assert "80 documents become train 64, valid 8, test 8" in said


def test_near_copies_of_training_text_in_a_named_test_split_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [" ".join(f"{word}{i}" for word in "abcdefghijklmnop") for i in range(9)]
    write_jsonl(tmp_path / "train.jsonl", texts)
    write_jsonl(tmp_path / "test.jsonl", [texts[3] + " more", "nothing of the kind"])
    split_documents(tmp_path, 0.0, 0.0, 0)
    assert "Warning: 1 of 2 documents of test are in train too" in capsys.readouterr().err


def test_a_corpus_without_training_text_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", ["held out"])
    with pytest.raises(CorpusError, match=r"it has test\.jsonl but no training text"):
        split_documents(tmp_path, 0.1, 0.1, 0)
