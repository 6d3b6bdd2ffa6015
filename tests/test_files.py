"""Files are written whole, through links, and only over what is a file; what killed writers left is removed."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memdec_edge.errors import ExistingOutputError, OutputError
from memdec_edge.files import atomic_path, is_leftover, refuse_existing, shown_name, write_text

# Writes half a file under the name given, says so, and waits to be ended.
WRITER = """
import sys
from pathlib import Path
from memdec_edge.files import atomic_path
with atomic_path(Path(sys.argv[1])) as part:
    part.write_text("half")
    print("half", flush=True)
    sys.stdin.read()
"""


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as part:
        part.write_text("new" * (1 // 0))
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "old")]


def test_writing_to_a_link_replaces_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target", tmp_path / "link"
    for content in ("first", "second"):  # at first the link leads nowhere
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        write_text(link, content)
        assert link.is_symlink()
        assert target.read_text() == content
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "link", "target"]


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o600)
    write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_pipe_or_folder_is_never_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "there"
    make(path)
    with pytest.raises(ExistingOutputError, match="it is no regular file; choose another path"):
        refuse_existing(path, overwrite=True)
    with pytest.raises(ExistingOutputError, match="it is no regular file; choose another path"):
        write_text(path, "new")
    assert not path.is_file()
    assert list(tmp_path.iterdir()) == [path]


def test_the_null_device_is_never_replaced() -> None:
    with pytest.raises(ExistingOutputError, match="/dev/null exists and is not overwritten; it is no regular file"):
        write_text(Path("/dev/null"), "x")


def test_a_file_is_replaced_where_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    refuse_existing(path)
    path.write_text("old")
    refuse_existing(path, overwrite=True)
    with pytest.raises(ExistingOutputError, match="give `overwrite` to replace it, or choose another path"):
        refuse_existing(path)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written: "):
        write_text(tmp_path / "file" / "below", "x")


def test_what_a_killed_process_left_is_known_by_its_name(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "model.gguf") as part:
        part.write_text("half")
        assert is_leftover(part)
    assert not is_leftover(tmp_path / "model.gguf")


def half_written(path: Path) -> "subprocess.Popen[str]":
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half\n"
    return writer


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_a_write_removes_what_killed_ones_left_in_the_folder_but_not_what_others_are_writing(tmp_path: Path) -> None:
    alive, killed = half_written(tmp_path / "alive"), half_written(tmp_path / "killed")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with atomic_path(tmp_path / "mine") as part:
        part.write_text("mine")
    assert sum(map(is_leftover, tmp_path.iterdir())) == 2
    alive.communicate("")
    assert (tmp_path / "alive").read_text() == "half"
    with atomic_path(tmp_path / "mine") as part:
        part.write_text("mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive", "mine"]


def test_the_name_of_a_file_is_text_whatever_its_bytes() -> None:
    assert shown_name(Path(os.fsdecode(b"folder/caf\xe9 \xc3\xa9.gguf"))) == "caf\ufffd é.gguf"
