"""Damaged inputs of convert by the thousand: does any crash it, hang it or end in a traceback?

    python -m benchmarks.fuzz_convert [--cases 10000] [--first 0]

GGUF headers, config.json, tokenizer.json, tokenizer.model and safetensors headers are damaged from a seed
(tests/support/mutations.py) and used. Cases run in processes of 250, so that one that ends its process is found and
named. The last line is one JSON object: how many were taken, how many refused and by which error, and the faults.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.mutations import KINDS, originals, run_case

BATCH, SECONDS = 250, 300  # cases in one process, and how long it may take

Context = multiprocessing.get_context("spawn")


def run_batch(first: int, count: int, at_work: Any, results: Any) -> None:
    """Run cases [first, first + count) in this process; `at_work` always holds the one at work."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        whole = originals(Path(folder))
        for case in range(first, first + count):
            at_work.value = case
            kind, seed = named(case)
            try:
                outcomes[f"{kind}: {run_case(kind, seed, whole, Path(folder))}"] += 1
            except Exception as error:  # a fault, whatever it is
                outcomes[f"FAULT {kind} {seed}: {error!r:.200}"] += 1
    results.put(outcomes)


def named(case: int) -> tuple[str, int]:
    """Kind and seed of a case."""
    return KINDS[case % len(KINDS)], case // len(KINDS)


def batch_in_process(first: int, count: int) -> Counter[str]:
    """run_batch in a process of its own; what ends or stops it is a fault, and the cases after it are run."""
    at_work, results = Context.Value("q", first), Context.Queue()
    process = Context.Process(target=run_batch, args=(first, count, at_work, results))
    process.start()
    process.join(SECONDS)
    if not process.exitcode and process.exitcode is not None:
        found: Counter[str] = results.get()
        return found
    reason = "hangs" if process.exitcode is None else f"ends the process ({process.exitcode})"
    process.kill()
    bad = at_work.value
    kind, seed = named(bad)
    fault = Counter({f"FAULT {kind} {seed}: {reason}": 1})
    return fault + batch_in_process(bad + 1, first + count - bad - 1) if bad + 1 < first + count else fault


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    for first in range(options.first, options.first + options.cases, BATCH):
        count = min(BATCH, options.first + options.cases - first)
        outcomes += batch_in_process(first, count)
        print(f"cases {first} to {first + count - 1} done", flush=True)
    faults = sorted(key for key in outcomes if key.startswith("FAULT"))
    taken = {key: value for key, value in sorted(outcomes.items()) if key not in faults}
    print(json.dumps({"cases": options.cases, "faults": faults, "outcomes": taken}))


if __name__ == "__main__":
    main()
