"""Hostile GGUFs end no process: each is used, or refused with a typed error in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gguf_mutations import KINDS

CASES = 80  # of each kind; benchmarks/fuzz_gguf.py runs over 3,000 of each
FUZZ = """
import sys
from collections import Counter
from pathlib import Path
from tests.support.gguf_mutations import originals, run_case
kind, scratch = sys.argv[1], Path(sys.argv[3])
whole = originals(scratch)
outcomes = Counter()
for seed in range(int(sys.argv[2])):
    print("at", seed, flush=True)
    outcomes[run_case(kind, seed, whole, scratch)] += 1
print("outcomes:", *sorted(outcomes), sep="\\n")
"""


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_used_or_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-c", FUZZ, kind, str(CASES), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    last_case = [line for line in done.stdout.splitlines() if line.startswith("at ")][-1]
    assert done.returncode == 0, f"{kind} {last_case}: {done.stderr[-500:]}"
    outcomes = done.stdout.partition("outcomes:\n")[2].splitlines()
    assert {"accepted", "refused by our rules", "refused by llama.cpp"} <= set(outcomes)
