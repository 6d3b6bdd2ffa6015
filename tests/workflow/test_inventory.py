"""list and rm: what is ours is found and can be removed; what is not, or is in use, stays."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from memdec_edge.gguf.index_file import tokenizer_of
from memdec_edge.gguf.metadata import CHECKPOINT_METADATA
from memdec_edge.train.artifacts import open_stage
from memdec_edge.train.lock import FolderLock
from tests.conftest import Family
from tests.support.command import error_of, last_json, memdec
from tests.support.indexes import index_file
from tests.support.terminal import terminal

DOMAIN = "x-rays"
HOLD = """
import sys, time
from pathlib import Path
from memdec_edge.train.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def stage(folder: Path, kind: str, *files: str) -> None:
    """A finished stage that has made `files` and a shard."""
    made = open_stage(folder, kind, {"corpus a.txt": "1"}, {"k": 4})
    with closing(made):
        made.begin()
        made.claim(*files)
        for file in files:
            (folder / file).write_text("{}")
        made.write("keys/00000.safetensors", {"x": np.zeros(1000, np.float32)})
        made.record(teacher="SmolLM2")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache folder, with nothing in it."""
    monkeypatch.setenv("MEMDEC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def result(home: Path, family: Family) -> Path:
    """What a run of `learn` leaves."""
    folder = home / "learn" / "x-rays"
    stage(folder / "memory", "memory", "model.safetensors")
    notes = {"memdec_edge.domain": DOMAIN, "memdec_edge.train.teacher": "SmolLM2"}
    (folder / "memory" / CHECKPOINT_METADATA).write_text(json.dumps(notes))
    stage(folder / "memory" / "cache", "kNN cache", "tokens.npy")
    shutil.copyfile(family.memory, folder / "memdec-x-rays.gguf")
    shutil.copyfile(family.base, folder / "base.gguf")
    digest, n_vocab = tokenizer_of(family.base)
    index_file(folder / "memdec-x-rays-index.gguf", [[1, 2, 3]], n_vocab, digest=digest, domain=DOMAIN)
    (folder / "report.html").write_text("<!doctype html>")
    return folder


@pytest.fixture
def held(result: Path) -> Iterator[Path]:
    """The result, while another process is at work in its cache."""
    command = [sys.executable, "-c", HOLD, str(result / "memory" / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield result
        process.kill()


def listed(*arguments: object) -> dict[str, dict[str, object]]:
    return {Path(str(item["file" if "file" in item else "path"])).name: item
            for item in last_json(memdec("list", *arguments, "--json"))["items"]}  # fmt: skip


def test_all_that_is_ours_is_listed_with_its_size_domain_and_base(result: Path) -> None:
    found = listed()
    kinds = {name: item["kind"] for name, item in found.items()}
    assert kinds == {
        "memory": "checkpoint", "cache": "cache", "memdec-x-rays.gguf": "memory", "memdec-x-rays-index.gguf": "index",
    }  # fmt: skip
    assert found["memdec-x-rays.gguf"]["n_bytes"] == (result / "memdec-x-rays.gguf").stat().st_size
    cache = sum(path.stat().st_size for path in (result / "memory" / "cache").rglob("*") if path.is_file())
    checkpoint = sum(path.stat().st_size for path in (result / "memory").rglob("*") if path.is_file())
    assert (found["cache"]["n_bytes"], found["memory"]["n_bytes"]) == (cache, checkpoint - cache)
    assert (found["memory"]["domain"], found["memory"]["base"]) == (DOMAIN, "SmolLM2")
    assert (found["cache"]["base"], found["memdec-x-rays-index.gguf"]["domain"]) == ("SmolLM2", DOMAIN)
    assert found["memdec-x-rays.gguf"]["base"] == found["memdec-x-rays-index.gguf"]["base"] != ""


def test_folders_that_are_named_are_looked_through_too(home: Path, family: Family, tmp_path: Path) -> None:
    assert memdec("list").stderr == "nothing is here yet; memdec-edge index makes an index in seconds\n"
    mine = tmp_path / "mine" / "deep"
    mine.mkdir(parents=True)
    shutil.copyfile(family.memory, mine / "memdec-a.gguf")
    (mine / "memdec-cut.gguf").write_bytes(family.memory.read_bytes()[:500])
    (mine / "manifest.json").write_text('{"of": "another program"}')
    done = memdec("list", tmp_path / "mine")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["kind", "memory"]
    assert done.stdout.splitlines()[1].endswith(str(mine / "memdec-a.gguf"))
    assert "memdec-cut.gguf: ends at byte 500" in done.stderr
    assert list(listed(mine / "memdec-a.gguf")) == ["memdec-a.gguf"]
    assert error_of("list", tmp_path / "none") == f"{tmp_path / 'none'}: no such file or folder; check the path"


def test_rm_removes_what_is_ours_and_leaves_what_others_put_there(result: Path) -> None:
    (result / "memory" / "notes.txt").write_text("mine")
    done = memdec("rm", "--yes", result / "memory" / "cache", result / "memory", result / "memdec-x-rays.gguf")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("removed ") == 3
    assert sorted(path.name for path in (result / "memory").iterdir()) == [CHECKPOINT_METADATA, "notes.txt"]
    assert list(listed()) == ["memdec-x-rays-index.gguf"]


def test_rm_removes_a_whole_result(result: Path) -> None:
    assert memdec("rm", "-y", result).returncode == 0
    assert not result.exists()
    assert result.parent.is_dir()


@pytest.mark.parametrize("name", ["base.gguf", "report.html", "", "..", "link.gguf", "none"])
def test_rm_refuses_what_this_tool_did_not_make(result: Path, name: str, tmp_path: Path) -> None:
    (result / "link.gguf").symlink_to(result / "memdec-x-rays.gguf")
    folder = tmp_path / "elsewhere"
    shutil.copytree(result, folder, symlinks=True)
    error = error_of("rm", "--yes", folder / name)
    assert error.startswith(str(folder / name))
    reasons = {
        "base.gguf": "is a plain model, not a memory, index, cache, checkpoint or result; remove it yourself",
        "link.gguf": "is a link to ", "none": "no such file or folder",
    }  # fmt: skip
    assert reasons.get(name, "is a file or folder that memdec-edge did not make") in error
    assert (folder / "base.gguf").exists()


@pytest.mark.parametrize("name", ["memory/cache", "", "memory"])
def test_rm_refuses_what_a_process_is_at_work_in(held: Path, name: str) -> None:
    error = error_of("rm", "--yes", held / name)
    assert " is at work in this folder; wait until it has ended, or stop it first" in error
    assert (held / "memory" / "cache" / "manifest.json").is_file()


def test_a_memory_stays_while_a_process_works_in_the_folder_around_it(result: Path) -> None:
    lock = FolderLock(result)
    lock.acquire()
    assert "is at work" in error_of("rm", "--yes", result / "memdec-x-rays.gguf")
    lock.release()
    assert memdec("rm", "--yes", result / "memdec-x-rays.gguf").returncode == 0


def test_a_lock_of_a_killed_process_holds_nothing(result: Path) -> None:
    (result / "memory" / "cache" / ".memdec-lock").touch()
    assert memdec("rm", "--yes", result / "memory" / "cache").returncode == 0
    assert not (result / "memory" / "cache").exists()


def test_rm_asks_on_a_terminal_and_nowhere_else(result: Path, home: Path) -> None:
    memory = result / "memdec-x-rays.gguf"
    assert (
        error_of("rm", memory, code=2)
        == "--yes is not given: no terminal is here to ask; give it to remove without a question"
    )
    for answer, there in (("n", True), ("yes", False)):
        with terminal("rm", memory, MEMDEC_HOME=str(home)) as shown:
            shown.wait_for("? [y/N]")
            shown.press(f"{answer}\r")
            assert shown.ends() == 0
        assert memory.exists() == there
