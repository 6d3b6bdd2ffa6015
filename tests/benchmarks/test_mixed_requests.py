"""benchmarks/mixed_requests.py on tiny models: requests of every kind, and clients that are killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Family
from tests.support.chatty import chatty

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "mixed_requests.py"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_no_request_is_lost_and_nothing_stays_taken_when_clients_vanish(family: Family, tmp_path: Path) -> None:
    base = chatty(family.base, tmp_path / "talker.gguf")
    flags = ["--count", "90", "--threads", "1", "--ctx-size", "600"]
    done = subprocess.run(
        [sys.executable, SCRIPT, base, family.memory, *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["killed"] > 0
    assert found["requests_cancelled"] > 0
    assert found["requests_finished"] > 0
