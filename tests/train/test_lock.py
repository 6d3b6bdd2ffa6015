"""train/lock.py: one process at a time works in a folder, and a killed one leaves it free."""

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from memdec_edge.errors import ExistingOutputError, OutputError, StageBusyError
from memdec_edge.train import lock
from memdec_edge.train.artifacts import Stage, open_stage
from memdec_edge.train.lock import FolderLock

HOLDS = """
import sys, time
from pathlib import Path
from memdec_edge.train.artifacts import open_stage
stage = open_stage(Path(sys.argv[1]), "test", {}, {}, ("keys/*.safetensors",))
stage.begin()
(stage.folder / ".a.safetensors.memdec-part-12345678").write_text("half")
print("begun", flush=True)
sys.stdin.read()
stage.close()
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that works in the folder until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "begun\n"
            yield child
        finally:
            child.kill()


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.0)


def opened(folder: Path) -> Stage:
    return open_stage(folder, "test", {}, {}, ("keys/*.safetensors",))


def test_the_second_process_names_the_first_and_touches_none_of_its_files(tmp_path: Path) -> None:
    with another_process(tmp_path) as child:
        before = sorted(path.name for path in tmp_path.iterdir())
        with closing(opened(tmp_path)) as stage, pytest.raises(StageBusyError) as caught:
            stage.begin()
        assert str(caught.value) == (
            f"{tmp_path}: process {child.pid} on {platform.node()} is at work in this folder; "
            "wait until it has ended, or stop it first"
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert ".a.safetensors.memdec-part-12345678" in before


def test_a_process_that_was_killed_leaves_the_folder_free(tmp_path: Path) -> None:
    with another_process(tmp_path) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == [".a.safetensors.memdec-part-12345678", ".memdec-holder", ".memdec-lock", "manifest.json"]
        with closing(opened(tmp_path)) as stage:
            stage.begin()
            assert (tmp_path / ".memdec-holder").read_text() == f"process {os.getpid()} on {platform.node()}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_the_folder_is_free_when_the_first_process_has_ended(tmp_path: Path) -> None:
    with another_process(tmp_path) as child:
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait() == 0
        with closing(opened(tmp_path)) as stage:
            stage.begin()


def test_two_stages_of_one_process_keep_each_other_out(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as one:
        one.begin()
        one.begin()
        with closing(opened(tmp_path)) as other, pytest.raises(StageBusyError, match=f"process {os.getpid()} on "):
            other.begin()
    with closing(other):
        other.begin()


def test_what_another_process_has_finished_meanwhile_is_seen_when_the_folder_is_taken(tmp_path: Path) -> None:
    late, slow = opened(tmp_path), opened(tmp_path)
    with closing(opened(tmp_path)) as first:
        first.begin()
        first.record(tau=2.0)
    with closing(late):
        late.begin()
    assert late.manifest == {"tau": 2.0}
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "thesis.tex").write_text("years of work")
    with closing(slow), pytest.raises(ExistingOutputError, match=r"thesis\.tex exists"):
        slow.begin()


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path: Path) -> None:
    with another_process(tmp_path):
        (tmp_path / ".memdec-holder").write_bytes(b"\xff")
        with pytest.raises(StageBusyError, match="another process is at work in this folder"):
            FolderLock(tmp_path).acquire()


@pytest.mark.parametrize("refusal", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_remarked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refusal: int
) -> None:
    def no_locks(file: int, operation: int) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with closing(opened(tmp_path)) as stage:
        stage.begin()
    assert capsys.readouterr().err == f"{tmp_path}: its file system has no locks; start no second run in it\n"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_an_output_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="could not be written"):
        FolderLock(tmp_path).acquire()


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/out could not be written"):
        FolderLock(tmp_path / "file" / "out").acquire()
