"""The command index, and what show and check say of an index."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from memdec_edge.gguf.index_file import IndexFile
from tests.conftest import Family
from tests.support.command import COMMAND, error_line, error_of, last_json, memdec
from tests.support.real import SMOLLM2

SENTENCE = "The heart is a muscle that pumps blood.\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(SENTENCE * 20)
    return path


@pytest.fixture
def index(family: Family, text: Path, tmp_path: Path) -> Path:
    path = tmp_path / "memdec-heart-index.gguf"
    done = memdec("index", text, "-m", family.base, "--out", path, "--domain", "heart", "--license", "CC0-1.0")
    assert done.returncode == 0, done.stderr
    return path


def test_index_says_what_it_made_and_that_the_file_holds_the_text(family: Family, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    done = memdec("index", text, "-m", family.base, "--out", path, "--add", text, "--json")
    found = last_json(done)
    assert done.stdout.startswith(f"{path}  0.0 MB  2 documents, {found['n_tokens']:,} tokens, ")
    assert "relative weight by the length of a match: " in done.stdout
    assert done.stderr.splitlines() == [
        "Warning: the name of an index should start with memdec-: memdec-own.gguf",
        f"{path} contains the text of the documents",
    ]
    assert found["path"] == str(path)
    assert (found["n_documents"], len(found["trust"])) == (2, 8)


def test_what_is_left_out_is_said(family: Family, tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "The heart is a muscle."}\n')
    done = memdec("index", tmp_path, "-m", family.base, "--out", tmp_path / "memdec-x.gguf", "--json")
    reason = "named as a validation or test file"
    assert f"text: left out, {reason}: valid.jsonl, test.jsonl" in done.stderr.splitlines()
    assert last_json(done)["left_out"] == {f"{tmp_path}/{split}.jsonl": reason for split in ("valid", "test")}


def test_show_says_what_an_index_holds(index: Path) -> None:
    done = memdec("show", index, "--json")
    found = last_json(done)
    assert (found["memdec_edge.role"], found["memdec_edge.domain"], found["documents"]) == ("index", "heart", 1)
    assert found["general.license"] == "CC0-1.0"
    assert done.stderr == f"{index} is an index: it contains the text of its documents\n"


def test_check_knows_an_index(family: Family, index: Path) -> None:
    done = memdec("check", "-m", family.base, "-M", index)
    assert (done.returncode, done.stdout.partition(": ")[0]) == (0, f"{index} matches {family.base}")
    assert error_of("check", "-m", family.stranger, "-M", index) == (
        f"{index} does not match {family.stranger}: it holds the tokens of another tokenizer; index the documents for "
        f"this base too: memdec-edge index DOCS -m {family.stranger} --out FILE"
    )
    data = bytearray(index.read_bytes())
    with IndexFile.open(index) as opened:
        first = opened.prefixes[:2].tobytes()
    at = data.index(first)
    data[at : at + 8] = first[4:] + first[:4]
    index.write_bytes(data)
    assert error_of("check", "-m", family.base, "-M", index) == (
        f"{index}: its prefixes are not in order; the file is damaged; download or make it again"
    )


def test_errors_name_the_flag_and_the_next_step(family: Family, text: Path, index: Path, tmp_path: Path) -> None:
    common = ["-m", family.base, "--out", index]
    assert error_of("index", text, *common) == (
        f"{index} exists and is not overwritten; give --overwrite to replace it, or choose another path"
    )
    assert error_of("index", tmp_path / "no", *common, "--overwrite") == (
        f"{tmp_path}/no: no such text file or folder; check the path"
    )
    assert error_of("run", "-m", index, "-p", "x") == (
        f"{index} is a document index, not a model; give it as --memory, beside a base"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_indexing_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    docs, out = tmp_path / "docs.txt", tmp_path / "out"
    os.mkfifo(docs)
    child = subprocess.Popen(
        [*COMMAND, "index", docs, "-m", SMOLLM2, "--out", out / "memdec-x.gguf"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with docs.open("w") as pipe:  # opens once the command reads
        pipe.write(SENTENCE * 60_000)
    time.sleep(0.2)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err.splitlines()[-1]) == (128 + number, "Error: stopped")
    assert not out.exists() or list(out.iterdir()) == []


def test_a_full_disk_leaves_the_old_index(family: Family, text: Path, index: Path) -> None:
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))\nfrom memdec_edge.cli import main; main()"
    before = index.read_bytes()
    command = [COMMAND[0], "-c", limit, "index", text, "-m", family.base, "--out", index, "--overwrite"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert error_line(done) == f"{index} could not be written: File too large; nothing was left under that name"
    assert index.read_bytes() == before
