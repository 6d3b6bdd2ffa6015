"""The command line as a process: streams that are closed, full or break, signals, and what is imported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Family
from tests.support.command import COMMAND, error_line
from tests.support.real import SMOLLM2

HEAVY = ("torch", "llama_cpp", "fastapi", "transformers", "numpy", "rich", "jinja2")
IMPORTS = f"import sys; print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"


@pytest.mark.parametrize(
    "program",
    [
        "import memdec_edge; memdec_edge.OptionError, memdec_edge.SamplingOptions(temperature=0)",
        "from memdec_edge.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_neither_import_nor_help_loads_anything_heavy(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"{program}\n{IMPORTS}"], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_a_null_device(family: Family, tmp_path: Path, closed: str) -> None:
    """What was meant for a closed stream goes nowhere: not to another stream, and not into a file."""
    words = [*COMMAND, "convert", str(family.memory_checkpoint), "--outfile", str(tmp_path / "out.gguf"), "--no-verify"]
    done = shell(f"{' '.join(words)} {closed}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").read_bytes()[:4] == b"GGUF"
    assert done.stdout.startswith(str(tmp_path)) == (">&-" not in closed.replace("2>&-", ""))
    assert ("Warning: the name of a memory should start with" in done.stderr) == ("2>&-" not in closed)


def test_a_closed_stderr_takes_no_error_elsewhere() -> None:
    done = shell(f"{' '.join(COMMAND)} run -m no.gguf -p x 2>&-")
    assert (done.returncode, done.stdout) == (1, "")


def test_a_full_output_is_one_line() -> None:
    assert error_line(shell(f"{' '.join(COMMAND)} run --help > /dev/full")) == (
        "the output could not be written: No space left on device"
    )


def test_a_reader_that_goes_away_ends_the_command_quietly(family: Family) -> None:
    words = [*COMMAND, "run", "-m", str(family.base), "-p", "x", "-n", "400", "--ignore-eos"]
    done = shell(f"{' '.join(words)} 2>/dev/null | head -c 5 >/dev/null; echo ${{PIPESTATUS[0]}} >&2")
    assert done.stderr == "0\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_end_a_command_with_one_line_and_their_own_code(number: signal.Signals) -> None:
    child = subprocess.Popen(
        [*COMMAND, "run", "-m", str(SMOLLM2), "-p", "The", "-n", "3000", "--ignore-eos"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.read(10)
    time.sleep(0.2)
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 128 + number
    assert err.splitlines() == ["Error: stopped"]


def test_a_full_disk_is_one_line_and_leaves_nothing(family: Family, tmp_path: Path) -> None:
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\nfrom memdec_edge.cli import main; main()"
    gguf = tmp_path / "memdec-x.gguf"
    command = [sys.executable, "-c", limit, "convert", str(family.memory_checkpoint), "--outfile", str(gguf)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert error_line(done) == f"{gguf} could not be written: File too large; nothing was left under that name"
    assert list(tmp_path.iterdir()) == []


def test_an_argument_that_is_not_utf8_is_refused_before_work_begins() -> None:
    command = [*map(str.encode, COMMAND), b"train", b"--domain", b"caf\xe9", b"--teacher", b"t", b"--corpus", b"c"]
    done = subprocess.run([*command, b"--out", b"o"], capture_output=True, text=True)
    assert error_line(done, 2) == r"--domain is caf\udce9: not UTF-8 at character 3; give valid text"
