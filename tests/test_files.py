"""memdec_edge.files: what killed writers left is removed, and what is being written is not."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from memdec_edge.files import atomic_path, is_leftover

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
