"""The command line as a process: streams that are closed, full or break, signals, and what is imported.

A real process is started only where its start or its end is what the test is about.
"""

import importlib
import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TextIO
from unittest.mock import patch

import pytest

from memdec_edge import __main__ as program
from memdec_edge.cli import main
from tests.conftest import Family
from tests.support.command import COMMAND, error_line, error_of, memdec
from tests.support.real import SMOLLM2

HEAVY = ("torch", "llama_cpp", "fastapi", "transformers", "numpy", "rich", "jinja2")
LIGHT = f"""
import sys
def loaded(): return [m for m in {HEAVY} if m in sys.modules]
import memdec_edge; memdec_edge.OptionError, memdec_edge.SamplingOptions(temperature=0)
print(loaded(), file=sys.stderr)
from memdec_edge.cli import main
try: main(['--help'])
except SystemExit: pass
print(loaded(), file=sys.stderr)
"""


def test_neither_import_nor_help_loads_anything_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n[]\n"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=600)


def exit_code(*arguments: object) -> object:
    """What the command leaves its process with."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@contextmanager
def streams(folder: Path, closed: str) -> Iterator[list[Path]]:
    """Let stdout and stderr be two files, and close what bash calls `closed`; Python then has no object for it."""
    files = [folder / "stdout", folder / "stderr"]
    kept = [os.dup(number) for number in range(3)]
    objects: dict[str, TextIO | None] = {"stdin": None if "<&-" in closed else sys.stdin}
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(files[number - 1], os.O_WRONLY | os.O_CREAT)
            os.dup2(file, number)
            os.close(file)
            missing = {1: ">&-" in closed.replace("2>&-", ""), 2: "2>&-" in closed}[number]
            objects[name] = None if missing else open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            if objects[name] is None:
                os.close(number)
        with patch.multiple(sys, stdin=objects["stdin"], stdout=objects["stdout"], stderr=objects["stderr"]):
            yield files
    finally:
        for number, descriptor in enumerate(kept):
            os.dup2(descriptor, number)
            os.close(descriptor)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_a_closed_stream_is_a_null_device(family: Family, tmp_path: Path, closed: str) -> None:
    """What was meant for a closed stream goes nowhere: not to another stream, and not into a file."""
    out = tmp_path / "out.gguf"
    with streams(tmp_path, closed) as (stdout, stderr):
        code = exit_code("convert", family.memory_checkpoint, "--outfile", out, "--no-verify")
    assert code == 0, stderr.read_text()
    assert out.read_bytes()[:4] == b"GGUF"
    assert stdout.read_text().startswith(str(tmp_path)) == (">&-" not in closed.replace("2>&-", ""))
    assert ("Warning: the name of a memory should start with" in stderr.read_text()) == ("2>&-" not in closed)


def test_a_process_without_any_stream_does_its_work(family: Family, tmp_path: Path) -> None:
    words = [*COMMAND, "convert", str(family.memory_checkpoint), "--outfile", str(tmp_path / "out.gguf"), "--no-verify"]
    done = shell(f"{' '.join(words)} <&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out.gguf").read_bytes()[:4] == b"GGUF"


def test_a_closed_stderr_takes_no_error_elsewhere(tmp_path: Path) -> None:
    with streams(tmp_path, "2>&-") as (stdout, stderr):
        code = exit_code("run", "-m", "no.gguf", "-p", "x")
    assert (code, stdout.read_text(), stderr.read_text()) == (1, "", "")


def test_a_full_output_is_one_line() -> None:
    err = io.StringIO()
    with open("/dev/full", "w", encoding="utf-8") as full, redirect_stdout(full), redirect_stderr(err):
        assert exit_code("run", "--help") == 1
    assert err.getvalue() == "Error: the output could not be written: No space left on device\n"


def test_a_reader_that_goes_away_ends_the_command_quietly(family: Family) -> None:
    words = [*COMMAND, "run", "-m", str(family.base), "-p", "x", "-n", "400", "--ignore-eos"]
    done = shell(f"{' '.join(words)} 2>/dev/null | head -c 5 >/dev/null; echo ${{PIPESTATUS[0]}} >&2")
    assert done.stderr == "0\n"


class Stopping(io.StringIO):
    """A stdout whose reader stops the process by a signal, once it has seen some text."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        written = super().write(text)
        if len(self.getvalue()) > 10:
            signal.raise_signal(self.number)
        return written


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_end_a_command_with_one_line_and_their_own_code(family: Family, number: signal.Signals) -> None:
    err, before = io.StringIO(), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with redirect_stdout(Stopping(number)), redirect_stderr(err):
            code = exit_code("run", "-m", family.base, "-p", "x", "-n", 400, "--ignore-eos")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 128 + number
    assert err.getvalue() == "Error: stopped\n"
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_a_signal_ends_the_process() -> None:
    with subprocess.Popen(
        [*COMMAND, "run", "-m", str(SMOLLM2), "-p", "The", "-n", "3000", "--ignore-eos"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.read(10)
        os.kill(child.pid, signal.SIGTERM)
        _, err = child.communicate(timeout=600)
    assert child.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1] == b"Error: stopped"


class Interrupting(MetaPathFinder):
    """Ctrl-C while a module is being loaded."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "memdec_edge.cli":
            raise KeyboardInterrupt


def test_ctrl_c_while_the_command_is_being_loaded_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "memdec_edge.cli")
    monkeypatch.delattr(importlib.import_module("memdec_edge"), "cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    for stderr in (sys.stderr, None):
        monkeypatch.setattr(sys, "stderr", stderr)
        with pytest.raises(SystemExit) as ended:
            program.main()
        assert ended.value.code == 130
    assert capsys.readouterr() == ("", "Error: stopped\n")


def test_a_full_disk_is_one_line_and_leaves_nothing(family: Family, tmp_path: Path) -> None:
    gguf, limits = tmp_path / "memdec-x.gguf", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        done = memdec("convert", family.memory_checkpoint, "--outfile", gguf)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error_line(done) == f"{gguf} could not be written: File too large; nothing was left under that name"
    assert list(tmp_path.iterdir()) == []


def test_an_argument_that_is_not_utf8_is_refused_before_work_begins() -> None:
    word = os.fsdecode(b"caf\xe9")
    error = error_of("train", "--domain", word, "--teacher", "t", "--corpus", "c", "--out", "o", code=2)
    assert error == r"--domain is caf\udce9: not UTF-8 at character 3; give valid text"
