"""memdec_edge.indexing: documents of every kind become an index that finds their text again."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.errors import CorpusError, ExistingOutputError, ModelFileError, OptionError, PairingError
from memdec_edge.files import sha256
from memdec_edge.gguf.index_file import IndexFile, tokenizer_of
from memdec_edge.gguf.origin import texts_seen
from memdec_edge.indexing.build import IndexReport, build_index
from memdec_edge.indexing.trust import USUAL, measured_trust, rising
from memdec_edge.indexing.verify import verify
from memdec_edge.llama.model import Model
from memdec_edge.mixture.match import CLASSES, Matcher
from memdec_edge.options import IndexOptions
from tests.conftest import Family
from tests.support.indexes import index_file, indexed
from tests.support.tiny import edit_gguf

HEART = "The heart is a muscle that pumps blood through the vessels."
LUNG = "The lung is an organ that takes oxygen from the air."


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    (folder / "heart.txt").write_text(HEART)
    lines = [json.dumps({"text": text}) for text in (LUNG, "  ", f"{LUNG} It has lobes.")]
    (folder / "more" / "lung.jsonl").write_text("\n".join(["", *lines]))
    (folder / "ignored.csv").write_text("x")
    return folder


@pytest.fixture
def options(family: Family, texts: Path, tmp_path: Path) -> IndexOptions:
    return IndexOptions(documents=texts, base=family.base, out=tmp_path / "out" / "memdec-x-index.gguf")


@pytest.fixture(scope="module")
def base(family: Family) -> Iterator[Model]:
    with closing(Model(family.base, vocab_only=True)) as opened:
        yield opened


def text_of(index: IndexFile, document: int, base: Model) -> str:
    start, end = (int(at) for at in index.starts[document : document + 2])
    return b"".join(base.piece(int(token)) for token in index.tokens[start : end - 1]).decode()


def test_a_name_that_is_not_utf8_is_shown_as_far_as_it_is(options: IndexOptions) -> None:
    (options.documents / os.fsdecode(b"caf\xe9.txt")).write_text(LUNG)
    build_index(options)
    with closing(IndexFile.open(options.out)) as index:
        assert "caf\ufffd.txt" in index.names


def test_an_index_tells_of_copies_of_its_text(options: IndexOptions, tmp_path: Path) -> None:
    copy = tmp_path / "test.jsonl"
    copy.write_text(json.dumps({"text": HEART}))
    build_index(replace(options, copies=(copy,)))
    assert sha256(copy) in texts_seen(options.out)
    assert sha256(options.documents / "heart.txt") in texts_seen(options.out)


def test_an_index_holds_every_document_with_its_name(options: IndexOptions, base: Model) -> None:
    report = build_index(options)
    assert isinstance(report, IndexReport)
    with IndexFile.open(options.out) as index:
        assert index.names == ["heart.txt", "more/lung.jsonl:1", "more/lung.jsonl:2"]
        assert [text_of(index, i, base) for i in range(3)] == [HEART, LUNG, f"{LUNG} It has lobes."]
        assert (report.n_documents, report.n_tokens) == (3, len(index.tokens))
        assert report.n_bytes == options.out.stat().st_size
        assert (index.digest, index.n_vocab) == tokenizer_of(options.base)
        ends = [int(index.tokens[int(end) - 2]) for end in index.starts[1:]]
        assert ends == [base.eos] * 3  # as training packs them
        verify(index)


def test_a_match_names_the_document_that_says_so(options: IndexOptions, base: Model) -> None:
    build_index(replace(options, domain="organs", license="CC0-1.0"))
    with IndexFile.open(options.out) as index:
        matcher = Matcher(index)
        matcher.extend(base.tokenize("takes oxygen from", add_special=False))
        found = matcher.match()
        assert index.place(found.where).document == "more/lung.jsonl:1"
        said = b"".join(map(base.piece, index.tokens[found.where : int(index.starts[2]) - 2].tolist())).decode()
        assert said == " the air."
        assert (index.domain, index.license) == ("organs", "CC0-1.0")


def test_more_documents_are_added_and_an_index_is_one_of_them(
    options: IndexOptions, base: Model, tmp_path: Path
) -> None:
    build_index(options)
    kidney = tmp_path / "kidney.md"
    kidney.write_text("The kidney filters blood.")
    both = replace(options, documents=options.out, add=(kidney,), out=tmp_path / "memdec-both.gguf")
    build_index(both)
    at_once = replace(options, add=(kidney,), out=tmp_path / "memdec-once.gguf")
    build_index(at_once)
    with IndexFile.open(both.out) as one, IndexFile.open(at_once.out) as other:
        assert one.names == other.names == ["heart.txt", "more/lung.jsonl:1", "more/lung.jsonl:2", "kidney.md"]
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.prefixes, other.prefixes)
    build_index(replace(both, out=options.out, overwrite=True))  # over one of its own sources
    with IndexFile.open(options.out) as index:
        assert index.n_documents == 4


def test_splits_for_validation_and_test_are_not_indexed(options: IndexOptions, tmp_path: Path) -> None:
    folder = tmp_path / "splits"
    folder.mkdir()
    for split, text in (("train", HEART), ("valid", LUNG), ("test", "The kidney filters blood.")):
        (folder / f"{split}.jsonl").write_text(json.dumps({"text": text}))
    report = build_index(replace(options, documents=folder))
    reason = "named as a validation or test file"
    assert report.left_out == {str(folder / "valid.jsonl"): reason, str(folder / "test.jsonl"): reason}
    assert report.trust_from == "1 documents for validation"
    with IndexFile.open(options.out) as index:
        assert index.names == ["train.jsonl:1"]


def test_a_folder_without_a_training_split_says_what_to_name(options: IndexOptions, tmp_path: Path) -> None:
    folder = tmp_path / "splits"
    folder.mkdir()
    (folder / "test.jsonl").write_text(json.dumps({"text": HEART}))
    for changed in ({"documents": folder}, {"add": (folder,)}):
        with pytest.raises(CorpusError, match=r"splits: it has test\.jsonl but no training text; name the files train"):
            build_index(replace(options, **changed))


def test_files_that_cannot_be_read_are_reported_as_left_out(options: IndexOptions, texts: Path) -> None:
    (texts / "bad.pdf").write_bytes(b"no pdf")
    (texts / "blank.md").write_text(" ")
    (texts / "logo.png").write_bytes(b"x")
    left_out = build_index(options).left_out
    assert left_out.pop(str(texts / "bad.pdf")).startswith("is no readable PDF")
    assert left_out == {
        str(texts / "logo.png"): ".png files are not read",
        str(texts / "blank.md"): "no text in it",
        str(texts / "ignored.csv"): "no text in it",
    }


def test_an_index_carries_digests_of_the_files_that_it_holds(
    options: IndexOptions, texts: Path, tmp_path: Path
) -> None:
    build_index(options)
    held = {sha256(texts / "heart.txt"), sha256(texts / "more" / "lung.jsonl")}
    assert set(texts_seen(options.out)) == held
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("train.txt", "The kidney filters blood.")
        archive.writestr("test.txt", "The spleen filters it too.")
    more = replace(options, documents=options.out, add=(tmp_path / "more.zip",), out=tmp_path / "memdec-more.gguf")
    build_index(more)
    assert set(texts_seen(more.out)) == held | {hashlib.sha256(b"The kidney filters blood.").hexdigest()}


def test_a_tokenizer_that_adds_bos_begins_each_document_with_it(
    options: IndexOptions, family: Family, tmp_path: Path
) -> None:
    base = edit_gguf(family.base, tmp_path / "bos.gguf", {"tokenizer.ggml.add_bos_token": True})
    build_index(replace(options, base=base))
    with closing(Model(base, vocab_only=True)) as model, IndexFile.open(options.out) as index:
        assert model.add_bos
        assert [int(index.tokens[int(start)]) for start in index.starts[:-1]] == [model.bos] * 3


def test_control_tokens_named_in_a_document_are_text(options: IndexOptions, base: Model, texts: Path) -> None:
    name = base.token_text(base.eos).decode()
    (texts / "heart.txt").write_text(f"a{name}b")
    build_index(options)
    with IndexFile.open(options.out) as index:
        assert index.tokens[: int(index.starts[1]) - 2].tolist() == base.tokenize(
            f"a{name}b", add_special=False, parse_special=False
        )


# --- trust ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.lists(st.floats(1, 100), min_size=8, max_size=8))
def test_trust_never_falls_and_ends_at_one(values: list[float], weights: list[float]) -> None:
    values[-1] = max(values[-1], 0.01)
    trust = rising(np.array(values), np.array(weights))
    assert (np.diff(trust) >= 0).all()
    assert trust[-1] == 1
    assert trust.min() >= 0


def test_values_that_rise_already_stay_what_they_are() -> None:
    np.testing.assert_allclose(rising(np.arange(1.0, 9), np.ones(8)), np.arange(1, 9) / 8)
    np.testing.assert_allclose(rising(np.array([4.0, 2, 6, 6, 6, 6, 6, 6]), np.array([1.0, 3] + [1] * 6))[:2], 2.5 / 6)


def test_trust_is_the_mean_probability_of_the_right_token() -> None:
    rng = np.random.default_rng(0)
    document = rng.integers(0, 100, 3000).tolist()
    index = indexed([document], 100)
    right = [np.array(document[at : at + 3], np.uint16) for at in range(0, 3000, 3)]
    wrong = [np.array([*tokens[:2], (tokens[2] + 1) % 100], np.uint16) for tokens in right]
    trust, otherwise = (measured_trust(index, documents) * USUAL[-1] for documents in (right, wrong))
    assert trust[0] == pytest.approx(1 / 30, abs=0.01)  # a token is followed by 30 others, most of them once
    assert trust[1] > 0.8  # two tokens by few
    assert otherwise[0] == pytest.approx(1 / 30, abs=0.01)
    assert otherwise[1] < 0.1
    assert len(trust) == len(CLASSES) == len(USUAL)


def test_without_held_out_text_the_usual_trust_stands(options: IndexOptions) -> None:
    report = build_index(replace(options, held_out=0.0))
    np.testing.assert_allclose(report.trust, np.array(USUAL) / USUAL[-1], rtol=1e-6)
    assert report.trust_from == "no document, since there are too few"


@pytest.mark.parametrize("n_documents", [1, 20])
def test_trust_is_measured_on_text_that_the_index_leaves_out_for_the_moment(
    options: IndexOptions, tmp_path: Path, n_documents: int
) -> None:
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": "".join(rng.choice(list("abcdefgh"), 900))}) for _ in range(n_documents)]
    alone, twice = tmp_path / "alone.jsonl", tmp_path / "twice.jsonl"
    alone.write_text("\n".join(lines))
    twice.write_text("\n".join([*lines, *lines]))
    first = build_index(replace(options, documents=alone))
    second = build_index(replace(options, documents=twice, overwrite=True))
    usual = USUAL[6] / USUAL[7]
    assert first.trust[6] == pytest.approx(usual)  # of letters at random no long run stands there twice
    assert second.trust[6] != pytest.approx(usual, abs=0.003)  # but a copy of what was left out does


# --- what cannot be -----------------------------------------------------------------------------------------------


def test_text_that_is_none_is_refused(options: IndexOptions, tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text(" \n")
    binary.write_bytes(b"ab\xff")
    for path, reason in ((empty, "no text in it"), (binary, "not UTF-8"), (tmp_path, "binary.txt: not UTF-8")):
        with pytest.raises(CorpusError, match=reason):
            build_index(replace(options, documents=path))
    assert not options.out.exists()


def test_a_document_of_one_token_is_too_little(options: IndexOptions, tmp_path: Path) -> None:
    tiny = tmp_path / "tiny.gguf"
    index_file(tiny, [[1]], tokenizer_of(options.base)[1], digest=tokenizer_of(options.base)[0])
    with pytest.raises(CorpusError, match="no document of it has two tokens; give more text"):
        build_index(replace(options, documents=tiny))


def test_more_tokens_than_an_index_holds_are_refused(options: IndexOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memdec_edge.indexing.tokens.MOST_TOKENS", 40)
    with pytest.raises(CorpusError, match="at most 40 tokens and 16,777,216 documents; divide the documents among"):
        build_index(options)


def test_an_index_of_another_tokenizer_is_no_source(options: IndexOptions, family: Family, tmp_path: Path) -> None:
    build_index(options)
    other = replace(options, documents=options.out, base=family.stranger, out=tmp_path / "memdec-y.gguf")
    with pytest.raises(PairingError, match="another tokenizer"):
        build_index(other)


def test_an_index_is_no_base_and_a_model_no_document(options: IndexOptions, family: Family) -> None:
    build_index(options)
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        build_index(replace(options, base=options.documents / "heart.txt", overwrite=True))
    with pytest.raises(Exception, match="is a document index, not a model"):
        build_index(replace(options, base=options.out, overwrite=True))
    with pytest.raises(Exception, match="is a model, not a document index"):
        build_index(replace(options, documents=family.base, overwrite=True))


def test_a_file_that_is_there_stays_unless_it_may_be_overwritten(options: IndexOptions) -> None:
    options.out.parent.mkdir()
    options.out.write_text("mine")
    with pytest.raises(ExistingOutputError):
        build_index(options)
    assert options.out.read_text() == "mine"
    build_index(replace(options, overwrite=True))
    IndexFile.open(options.out).close()


def test_options_are_checked(options: IndexOptions) -> None:
    with pytest.raises(OptionError, match="add is x: must be a tuple"):
        replace(options, add="x")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="held_out"):
        replace(options, held_out=0.6)
