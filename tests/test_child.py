"""memdec_edge/child.py: what crosses the border between two processes, and how the second one ends."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from memdec_edge import errors
from memdec_edge.child import run_in_child
from memdec_edge.errors import Cancelled, MemdecError, OptionError, PairingError, WorkerError

HERE = {"PYTHONPATH": str(Path(__file__).parent / "support")}  # where a child finds work.py
# argv: a function of work.py, its arguments; prints the typed error and exits with its code.
PARENT = """
import sys
from pathlib import Path
from memdec_edge.child import run_in_child
from memdec_edge.errors import MemdecError
try:
    run_in_child(f"work:{sys.argv[1]}", Path(sys.argv[2]), *sys.argv[3:], environment={})
except MemdecError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def run(function: str, *arguments: Any, **environment: str) -> Any:
    return run_in_child(f"work:{function}", *arguments, environment=HERE | environment)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended, perhaps not yet fetched by its parent."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


@contextmanager
def parent(function: str, folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process in a session of its own whose child is at work, and the child's pid."""
    command: list[str | Path] = [sys.executable, "-c", PARENT, function, folder, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | HERE,
        start_new_session=True,
    ) as process:  # fmt: skip
        note = folder / "pid"
        until(lambda: note.exists() and note.read_text() != "")
        yield process, int(note.read_text())


def test_a_child_answers_with_what_the_function_returns(capfd: pytest.CaptureFixture[str]) -> None:
    pid, arguments = run("answer", Path("here"), 1.5, None)
    assert arguments == (Path("here"), 1.5, None)
    assert pid != os.getpid()
    assert gone(pid)
    assert capfd.readouterr() == ("", "noise of a library\nnoise of a C library\n")


def test_only_the_child_has_the_environment() -> None:
    assert run("environment", "OMP_WAIT_POLICY", OMP_WAIT_POLICY="passive, says a test") == "passive, says a test"
    assert os.environ.get("OMP_WAIT_POLICY") != "passive, says a test"


def test_a_file_in_the_working_directory_takes_no_librarys_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit('read')")
    monkeypatch.chdir(tmp_path)
    assert run("environment", "PYTHONPATH") == HERE["PYTHONPATH"]


ERRORS = [
    OptionError("lr", 2.0, "must be from 0.0 to 1.0"),
    PairingError("a.gguf", "b.gguf", "token 5 differs"),
    Cancelled("run again to go on"),
    MemoryError("too much"),
    FileNotFoundError(2, "No such file or directory", "x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_crosses_with_its_class_its_message_and_its_attributes(
    error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)) as caught:
        run("fail", error)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert caught.value.__dict__ == error.__dict__
    if isinstance(caught.value, MemdecError):
        assert caught.value.exit_code == error.exit_code  # type: ignore[attr-defined]
    assert capfd.readouterr().err == ""  # its one line is the parent's to say


def test_every_typed_error_survives_pickling() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MemdecError)]
    assert len(kinds) > 15
    for kind in kinds:
        error = kind.__new__(kind, "said on one line")
        error.__dict__.update(path=Path("a"), reason="so")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.__dict__) == (kind, "said on one line", error.__dict__)


def test_a_fault_of_ours_shows_its_traceback_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError, match="by none"):
        run("fail", ZeroDivisionError("by none"))
    assert capfd.readouterr().err.count("Traceback") == 1


def test_an_exception_that_cannot_be_rebuilt_is_told_in_words() -> None:
    with pytest.raises(RuntimeError, match="StrangeError: one two"):
        run("strange")


def test_a_child_that_is_killed_is_told_from_one_that_leaves() -> None:
    with pytest.raises(WorkerError, match="was killed, most likely because memory ran out") as caught:
        run("die", signal.SIGKILL)
    assert caught.value.returncode == -signal.SIGKILL
    with pytest.raises(WorkerError, match="ended with 7 and no answer"):
        run("leave", 7)


@pytest.mark.parametrize("everyone", [True, False], ids=["as a terminal does", "the parent alone"])
def test_ctrl_c_reaches_the_child_once_and_its_last_words_are_told(tmp_path: Path, everyone: bool) -> None:
    with parent("work", tmp_path, "run again to go on") as (process, pid):
        if everyone:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
    assert (process.returncode, out, err) == (130, "stopped; run again to go on\n", "saved\n")
    assert (tmp_path / "interrupts").read_text() == "1"
    assert gone(pid)


def test_sigterm_to_the_child_stops_it_as_ctrl_c_does(tmp_path: Path) -> None:
    with parent("work", tmp_path, "run again to go on") as (process, pid):
        os.kill(pid, signal.SIGTERM)
        out, _ = process.communicate(timeout=600)
    assert (process.returncode, out) == (130, "stopped; run again to go on\n")


def test_a_child_saves_its_work_and_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    with parent("work", tmp_path, "") as (process, pid):
        process.kill()
        until(lambda: gone(pid))
    assert (tmp_path / "interrupts").read_text() == "1"


def test_a_second_ctrl_c_ends_a_child_that_does_not_stop(tmp_path: Path) -> None:
    with parent("stubborn", tmp_path) as (process, pid):
        process.send_signal(signal.SIGINT)
        until((tmp_path / "interrupts").exists)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=600)
        assert gone(pid)
    assert process.returncode == -signal.SIGINT
