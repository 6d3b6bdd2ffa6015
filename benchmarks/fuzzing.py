"""Running cases by the thousand, so that one that ends its process is found and named. Knows nothing of what a case is.

Cases run in processes of BATCH. A module of cases has KINDS, originals(folder) and run_case(kind, seed, originals,
scratch), which returns an outcome or raises what no user should see.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.provenance import made_by

BATCH, SECONDS = 250, 3600  # cases in one process, and how long it may take

Context = multiprocessing.get_context("spawn")


def main(module: str, purpose: str | None) -> None:
    """Run the cases of a module as the command line says; print progress, the command, and one JSON object."""
    parser = argparse.ArgumentParser(description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    for first in range(options.first, options.first + options.cases, BATCH):
        count = min(BATCH, options.first + options.cases - first)
        outcomes += batch_in_process(module, first, count)
        faults = sorted(key for key in outcomes if key.startswith("FAULT"))
        print(f"cases {first} to {first + count - 1} done, {len(faults)} faults", flush=True)
    taken = {key: value for key, value in sorted(outcomes.items()) if key not in faults}
    print(made_by(), json.dumps({"cases": options.cases, "faults": faults, "outcomes": taken}), sep="")


def batch_in_process(module: str, first: int, count: int) -> Counter[str]:
    """run_batch in a process of its own; what ends or stops it is a fault, and the cases after it are run."""
    at_work, results = Context.Value("q", first), Context.Queue()
    process = Context.Process(target=run_batch, args=(module, first, count, at_work, results))
    process.start()
    process.join(SECONDS)
    if not process.exitcode and process.exitcode is not None:
        found: Counter[str] = results.get()
        return found
    reason = "hangs" if process.exitcode is None else f"ends the process ({process.exitcode})"
    process.kill()
    bad = at_work.value
    kind, seed = named(import_module(module).KINDS, bad)
    fault = Counter({f"FAULT {kind} {seed}: {reason}": 1})
    return fault + batch_in_process(module, bad + 1, first + count - bad - 1) if bad + 1 < first + count else fault


def run_batch(module: str, first: int, count: int, at_work: Any, results: Any) -> None:
    """Run cases [first, first + count) in this process; `at_work` always holds the one at work."""
    cases = import_module(module)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        whole = cases.originals(Path(folder))
        for case in range(first, first + count):
            at_work.value = case
            kind, seed = named(cases.KINDS, case)
            try:
                outcomes[f"{kind}: {cases.run_case(kind, seed, whole, Path(folder))}"] += 1
            except Exception as error:  # a fault, whatever it is
                outcomes[f"FAULT {kind} {seed}: {error!r:.200}"] += 1
    results.put(outcomes)


def named(kinds: tuple[str, ...], case: int) -> tuple[str, int]:
    """Kind and seed of a case."""
    return kinds[case % len(kinds)], case // len(kinds)
