"""Names of files that say which split they serve."""

import json
import zipfile
from pathlib import Path

import pytest

from memdec_edge.documents import find_files, read_documents, split_documents
from memdec_edge.documents.splits import split_of
from memdec_edge.errors import CorpusError


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = json.dumps({"text": name}) + "\n"
        path.write_text(f"[{row}]" if path.suffix == ".json" else row if path.suffix == ".jsonl" else name)
    return folder


def found(folder: Path) -> dict[str, list[str]]:
    return {split: [str(file.inside) for file in files] for split, files in find_files(folder).files.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", ("", "train")), ("train2.jsonl", ("", "train")), ("test_3.txt", ("", "test")),
        ("train-00000-of-00012.parquet", ("", "train")), ("validation.jsonl", ("", "valid")),
        ("validation-00000-of-00001.parquet", ("", "valid")), ("dev.csv", ("", "valid")), ("val.json", ("", "valid")),
        ("test.jsonl.gz", ("", "test")), ("Test.TXT", ("", "test")), ("law_train.jsonl", ("law", "train")),
        ("trains.txt", None), ("retrain.jsonl", None), ("contest.txt", None), ("training-plan.txt", None),
    ],
)  # fmt: skip
def test_names_of_splits_are_those_of_data_sets(name: str, split: tuple[str, str] | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.txt", "valid.txt", "test.txt", "a.txt"],
         {"train": ["train.txt"], "valid": ["valid.txt"], "test": ["test.txt"]}),
        (["train.jsonl", "train2.jsonl"], {"train": ["train.jsonl", "train2.jsonl"]}),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"],
         {"train": ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
          "test": ["test-00000-of-00001.jsonl"]}),
        (["data/train.jsonl", "data/validation.jsonl", "README.md"],
         {"train": ["data/train.jsonl"], "valid": ["data/validation.jsonl"]}),
        (["train/a.txt", "test/b.txt", "test/c.md"], {"train": ["train/a.txt"], "test": ["test/b.txt", "test/c.md"]}),
        (["law_train.jsonl", "law_test.jsonl", "blood-test.jsonl"],
         {"train": ["law_train.jsonl"], "test": ["law_test.jsonl"]}),
        (["train.py", "test.py", "src/a.py", "test/b.py"], {"train": ["src/a.py", "test/b.py", "test.py", "train.py"]}),
        (["train.txt", "plane.txt"], {"train": ["plane.txt", "train.txt"]}),
        (["blood-test.jsonl", "heart.jsonl"], {"train": ["blood-test.jsonl", "heart.jsonl"]}),
        (["test.jsonl", "notes.md"], {"test": ["test.jsonl"]}),
        (["a.md", "deep/train.csv", "deep/test.csv"], {"train": ["a.md", "deep/train.csv"]}),
    ],
)  # fmt: skip
def test_files_serve_the_split_of_their_name(tmp_path: Path, names: list[str], expected: dict[str, list[str]]) -> None:
    assert found(make(tmp_path, *names)) == expected


@pytest.mark.parametrize(
    "names", [["valid.jsonl"], ["valid.jsonl", "a.jsonl"], ["valid.txt", "test.txt"], ["test.txt", "a.txt"]]
)
def test_what_is_ambiguous_is_refused_by_name(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(CorpusError, match=rf"{names[0].replace('.', '[.]')}.*but no file is named train; rename it"):
        find_files(make(tmp_path, *names))


def test_a_zip_names_splits_as_a_folder_does(tmp_path: Path) -> None:
    make(tmp_path / "made", "train.jsonl", "test.jsonl", "notes.md")
    with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
        for path in (tmp_path / "made").iterdir():
            archive.write(path, f"corpus/{path.name}")  # as a folder is usually zipped
    assert found(tmp_path / "corpus.zip") == {"train": ["train.jsonl"], "test": ["test.jsonl"]}
    assert read_documents(tmp_path / "corpus.zip") == ["test.jsonl"]


def test_stderr_says_which_files_serve_which_split_and_which_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, "train.jsonl", "train2.jsonl", "test.jsonl", "notes.md", ".hidden.txt", "logo.png")
    split_documents(tmp_path, 0.1, 0.0, 0)
    assert capsys.readouterr().err.splitlines() == [
        "text: train from train.jsonl, train2.jsonl; test from test.jsonl; valid is taken from train",
        "text: left out, hidden: .hidden.txt",
        "text: left out, .png files are not read: logo.png",
        "text: left out, other files name the splits: notes.md",
        "text: 2 documents become train 1, valid 1",
    ]
    read_documents(tmp_path)
    assert capsys.readouterr().err.splitlines()[0] == "text: the test split, test.jsonl; not train.jsonl, train2.jsonl"


def test_stderr_says_what_a_folder_without_splits_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, *(f"{i}.md" for i in range(20)), "a.txt", "blank.txt", "logo.png")
    (tmp_path / "blank.txt").write_text(" \n")
    splits = split_documents(tmp_path, 0.1, 0.1, 0)
    counts = [len(splits[split]) for split in ("train", "valid", "test")]
    assert capsys.readouterr().err.splitlines() == [
        "text: 22 files (20 .md, 2 .txt)",
        "text: left out, .png files are not read: logo.png",
        "text: left out, no text in it: blank.txt",
        "text: 21 documents become train {}, valid {}, test {}".format(*counts),
    ]
    assert {document.source for part in splits.values() for document in part} == {
        str(tmp_path / name) for name in ("a.txt", *(f"{i}.md" for i in range(20)))
    }
