"""Hostile GGUFs end no process: each is used, or refused with a typed error in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import gguf_mutations, index_mutations

CASES = 80  # of each kind; benchmarks/fuzz_gguf.py and fuzz_index.py run over 2,000 of each
FUZZ = """
import sys
from importlib import import_module
from pathlib import Path
cases, scratch, count = import_module(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
whole = cases.originals(scratch)
outcomes = set()
for kind in sys.argv[4:]:
    for seed in range(count):
        print("at", kind, seed, flush=True)
        outcomes.add(f"{kind}: {cases.run_case(kind, seed, whole, scratch)}")
print("outcomes:", *outcomes, sep="\\n")
"""


@pytest.mark.parametrize("kind", gguf_mutations.KINDS)
def test_hostile_models_are_used_or_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    wanted = {f"{kind}: {outcome}" for outcome in ("accepted", "refused by our rules", "refused by llama.cpp")}
    assert wanted <= outcomes_of(gguf_mutations.__name__, tmp_path, kind)


def test_hostile_indexes_are_used_or_refused_in_one_line(tmp_path: Path) -> None:
    outcomes = outcomes_of(index_mutations.__name__, tmp_path, *index_mutations.KINDS)
    assert {f"{kind}: refused" for kind in ("bytes", "keys", "tensors", "end")} <= outcomes
    assert {"keys: accepted", "tensors: found out", "arrays: found out"} <= outcomes


def outcomes_of(module: str, folder: Path, *kinds: str) -> set[str]:
    """What became of the cases, which run in a process of their own; the assertion names the one that ends it."""
    command = [sys.executable, "-c", FUZZ, module, str(folder), str(CASES), *kinds]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    last_case = [line for line in done.stdout.splitlines() if line.startswith("at ")][-1]
    assert done.returncode == 0, f"{last_case}: {done.stderr[-500:]}"
    return set(done.stdout.partition("outcomes:\n")[2].splitlines())
