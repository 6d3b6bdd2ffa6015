"""Token ids as a corpus: a memory learns from them what it learns from the text; whose ids they are is proven."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from memdec_edge.errors import CorpusError, MemdecError, OptionError, StageError
from memdec_edge.train import build_cache, train, write_ids
from memdec_edge.train.token_files import read_ids
from memdec_edge.train.vocabulary import read_vocabulary, vocabulary_digest
from tests.support.tiny import OTHER_TEXT, tiny_checkpoint, tiny_gguf
from tests.support.training import cache_options, make_room, train_options


def digest(model: Path) -> str:
    return str(vocabulary_digest(read_vocabulary(model)))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a text corpus; its cache holds the ids that the text has."""
    return make_room(tmp_path_factory.mktemp("train"))


@pytest.fixture
def ids(room: Path, tmp_path: Path) -> Path:
    """The same corpus as ids."""
    for split in ("train", "valid"):
        write_ids(
            tmp_path / "ids" / f"{split}.npy", np.load(room / "cache" / "tokens" / f"{split}.npy"), room / "teacher"
        )
    return tmp_path / "ids"


def test_a_memory_of_ids_is_the_memory_of_their_text(
    room: Path, ids: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = cache_options(room, corpus=ids, out=tmp_path / "cache")
    of_text, of_ids = (
        train(train_options(room, tmp_path / "a")),
        train(train_options(room, tmp_path / "b", cache=cache)),
    )
    assert replace(of_ids, path=of_text.path, seconds=of_text.seconds) == of_text
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert "text: token ids, train from train.npy, valid from valid.npy\n" in capfd.readouterr().err
    assert not (tmp_path / "cache" / "test.jsonl").exists()


def test_a_single_file_is_training_text_and_needs_a_temperature(room: Path, ids: Path, tmp_path: Path) -> None:
    options = cache_options(room, corpus=ids / "train.npy", out=tmp_path / "cache")
    with pytest.raises(OptionError, match="knn_temp is auto: needs 17 tokens of validation text"):
        build_cache(options)
    report = build_cache(replace(options, knn_temp=4.0, max_tokens=400))
    assert (report.train_tokens, report.valid_tokens) == (400, 0)


def test_ids_that_have_changed_are_another_corpus(room: Path, ids: Path, tmp_path: Path) -> None:
    options = cache_options(room, corpus=ids, out=tmp_path / "cache")
    build_cache(options)
    write_ids(ids / "valid.npy", np.load(ids / "valid.npy")[:-1], room / "teacher")
    with pytest.raises(StageError, match=r"corpus valid\.npy has changed"):
        build_cache(options)


def test_a_gguf_and_its_folder_have_one_digest_and_another_text_has_another(room: Path, tmp_path: Path) -> None:
    mine = digest(room / "teacher")
    assert digest(tiny_gguf(tmp_path / "a.gguf", room / "teacher")) == mine
    assert digest(tiny_checkpoint(tmp_path / "padded", vocab_extra=5)) == mine
    assert digest(tiny_checkpoint(tmp_path / "other", text=OTHER_TEXT)) != mine


def test_ids_of_another_tokenizer_are_refused_and_leave_no_trace(room: Path, ids: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", text=OTHER_TEXT, n_tokens=400)
    write_ids(ids / "valid.npy", [1, 2, 3], other)
    with pytest.raises(CorpusError) as caught:
        build_cache(cache_options(room, corpus=ids, out=tmp_path / "cache"))
    whose = f"its ids are of the tokenizer {digest(other)}, and the teacher's is {digest(room / 'teacher')}"
    assert str(caught.value) == f"{ids / 'valid.npy'}: {whose}; tokenize the text again"
    assert not (tmp_path / "cache").exists()


def test_ids_without_a_digest_say_what_to_write(room: Path, ids: Path) -> None:
    facts = ids / "train.json"
    said = json.loads(facts.read_text())
    facts.unlink()
    with pytest.raises(CorpusError, match=r"train\.json: is missing") as caught:
        read_ids(ids / "train.npy", room / "teacher")
    assert json.loads(str(caught.value).split(", write ")[1]) == said


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(50, np.int64), r"holds int64 \[50\]; token ids are uint16 or uint32, in one dimension"),
        (np.zeros((5, 5), np.uint16), r"holds uint16 \[5, 5\]; token ids are"),
        (np.full(50, 5000, np.uint16), "holds the id 5000, and the vocabulary has"),
        (np.array([{}], object), "is no array of NumPy's, or a damaged one"),
    ],
)
def test_what_is_no_stream_of_ids_is_refused(room: Path, ids: Path, array: Any, reason: str) -> None:
    np.save(ids / "train.npy", array)
    with pytest.raises(CorpusError, match=reason):
        read_ids(ids / "train.npy", room / "teacher")


def test_ids_that_the_vocabulary_lacks_are_not_written(room: Path, tmp_path: Path) -> None:
    for ids in ([-1, 2], [1, 1 << 20]):
        with pytest.raises(CorpusError, match="and the vocabulary has"):
            write_ids(tmp_path / "train.npy", ids, room / "teacher")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_end_in_an_error_of_ours(room: Path, ids: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["train.npy", "train.json"]))
    good = (ids / name).read_bytes()
    bad = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for _ in range(data.draw(st.integers(0, 3)) if bad else 0):
        bad[data.draw(st.integers(0, min(len(bad), 130) - 1))] = data.draw(st.integers(0, 255))
    (ids / name).write_bytes(bad)
    said = ""
    try:
        read_ids(ids / "train.npy", room / "teacher")
    except MemdecError as error:
        said = str(error)
    finally:
        (ids / name).write_bytes(good)
    assert "\n" not in said
