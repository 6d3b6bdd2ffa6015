"""Reading text files as documents."""

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.documents import decode_text, plain, read_documents, read_stream, read_text
from memdec_edge.errors import CorpusError, MissingFileError


def test_a_folder_is_read_in_order_of_names_without_hidden_and_other_files(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth"}\n')
    (tmp_path / "d.pdf").write_text("no text file")
    (tmp_path / ".hidden.txt").write_text("hidden")
    assert read_documents(tmp_path) == ["first", "second", "third", "fourth"]


def test_of_a_folder_with_splits_the_test_split_is_read(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    assert read_documents(tmp_path) == ["test"]


def test_a_training_split_is_never_taken_for_a_test_split(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "seen"}')
    with pytest.raises(CorpusError, match=r"it has train\.jsonl but no test split; name the file"):
        read_documents(tmp_path)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.txt: no such text file or folder"):
        read_documents(tmp_path / "nowhere.txt")


def test_a_file_that_is_not_utf8_names_byte_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"latin\.txt: not UTF-8: byte 0xe9 at offset 3"):
        read_documents(path)


@pytest.mark.parametrize("line", ["{", "3", '{"body": "x"}', '{"text": 3}', "[" * 100_000])
def test_a_jsonl_line_without_text_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(CorpusError, match="line 2"):
        read_documents(path)


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_corpus_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(CorpusError, match="no text in it"):
        read_documents(tmp_path)


def test_half_a_surrogate_pair_in_json_becomes_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}')
    assert read_documents(tmp_path) == ["a?b"]


def test_a_stream_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "ENDLESS", 1 << 20)
    with pytest.raises(CorpusError) as caught:
        read_text(Path("/dev/zero"))
    assert str(caught.value) == "/dev/zero: gives over 1 MiB and may have no end; give a file"
    assert read_stream(io.BytesIO(b"caf\xc3\xa9"), "stdin") == "café"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_what_is_utf8_reads_back(text: str) -> None:
    assert decode_text(b"\xef\xbb\xbf" + text.encode(), "x") == text.replace("\r\n", "\n")


def test_line_ends_of_windows_become_those_of_everyone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "four\\r\\n"}\r\n{"text": "five"}\r\n')
    assert read_documents(tmp_path) == ["one\ntwo\rthree\n", "four\r\n", "five"]  # JSON spells what it means


def test_folders_that_training_made_are_no_documents(tmp_path: Path) -> None:
    for name, manifest in (("memory", {"stage": "memory"}), ("web", {"icons": []})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
        (tmp_path / name / "a.txt").write_text(name)
    (tmp_path / "memory" / "metrics.jsonl").write_text('{"step": 1}')
    assert read_documents(tmp_path) == ["web"]
    with pytest.raises(CorpusError, match=r"memory: holds what training made, not documents; give text$"):
        read_documents(tmp_path / "memory")
    (tmp_path / "memory" / "cache").mkdir()
    (tmp_path / "memory" / "cache" / "test.jsonl").write_text('{"text": "held out"}')
    with pytest.raises(CorpusError, match=r"give text, such as .*memory/cache/test\.jsonl$"):
        read_documents(tmp_path / "memory")
    assert read_documents(tmp_path / "memory" / "cache") == ["held out"]


def test_a_pipe_is_read_as_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        pool.submit((tmp_path / "pipe").write_text, "through a pipe")
        assert read_documents(tmp_path / "pipe") == ["through a pipe"]


@given(st.binary())
def test_any_bytes_give_text_or_a_typed_error(data: bytes) -> None:
    try:
        decode_text(data, "x")
    except CorpusError as error:
        assert "offset" in str(error)  # noqa: PT017 - both outcomes are right
