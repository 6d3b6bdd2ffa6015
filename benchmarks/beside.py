"""A training beside other work: seconds a step, alone and beside busy processes, with spinning and passive threads.

    python benchmarks/beside.py [--steps 8] [--short]

Each row is a training of SmolLM2-135M as `memdec-edge train` runs it, in a process of its own, on 4 x 256 tokens a step
(beta 0). The busy processes are Python loops of one thread each. Figures are medians of the steps after the second.
"spinning" is what a training was before, and is still with --spin.

llama.cpp's decoding is measured in this process before and after the trainings, and in processes with either way of
waiting: what a training in this process would have cost it. --short takes a narrow memory and few steps, to see that
the script works. The last line is one JSON object. Knows nothing of how the waiting is set.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

from provenance import made_by, metrics

from memdec_edge.api import open_model
from memdec_edge.options import CacheOptions, GenerationOptions, SamplingOptions, TrainOptions
from memdec_edge.train import train_apart
from memdec_edge.workflow.demo import demo_base

WAITING = {"spinning": True, "passive": False}
BUSY = (0, 1, 2)
BLOCK, BATCH = 256, 4
DECODED = 128  # tokens


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that do nothing but keep a CPU busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def step_seconds(options: TrainOptions, waiting: str, processes: int) -> float:
    """Median seconds of a step; the first two are left out, in which memory is allocated."""
    out = options.out / f"{waiting}-{processes}"
    cache = replace(options.cache, out=options.out / "cache", spin=WAITING[waiting])
    with busy(processes):
        train_apart(replace(options, cache=cache, out=out))
    return float(median(line["seconds"] for line in metrics(out)[2:]))


def decoding(base: Path) -> float:
    """Tokens a second of llama.cpp in this process."""
    with open_model(base) as model:
        limits = GenerationOptions(n_predict=DECODED, ignore_eos=True)
        return max(
            model.generate("The", SamplingOptions(seed=1), limits).timings.predicted_per_second for _ in range(3)
        )


def decoding_elsewhere(waiting: str) -> float:
    """The same in a process whose threads wait so."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if waiting == "passive":
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    command = [sys.executable, __file__, "--decode"]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Decoding, the trainings, decoding again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--short", action="store_true", help="a narrow memory and four steps")
    parser.add_argument("--decode", action="store_true", help=argparse.SUPPRESS)  # what the script calls itself with
    args = parser.parse_args()
    base = demo_base()
    if args.decode:
        print(decoding(base))
        return
    if set_there := {"OMP_WAIT_POLICY", "KMP_BLOCKTIME", "OMP_NUM_THREADS"} & set(os.environ):
        parser.error(f"unset {', '.join(sorted(set_there))}: it would decide in place of what is compared")
    before = decoding(base)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(" ".join(f"The patient of room {i} was seen on day {i % 31}." for i in range(4000)))
        cache = CacheOptions(base, text, Path(folder) / "cache", block=BLOCK, batch=BATCH, max_tokens=20_000)
        steps = 4 if args.short else args.steps
        options = TrainOptions(cache, Path(folder), hidden=64 if args.short else None, steps=steps, lr=1e-5, beta=0.0)
        options = replace(options, valid_every=0)
        seconds = {
            waiting: {processes: step_seconds(options, waiting, processes) for processes in BUSY} for waiting in WAITING
        }
    after = decoding(base)
    elsewhere = {waiting: decoding_elsewhere(waiting) for waiting in WAITING}
    print(made_by(), end="")
    print(f"{'seconds a step of 4 x 256 tokens':<36}" + "".join(f"{f'beside {n}' if n else 'alone':>12}" for n in BUSY))
    for waiting, found in seconds.items():
        print(f"{waiting:<36}" + "".join(f"{value:>12.2f}" for value in found.values()))
        print(f"{'  against alone':<36}" + "".join(f"{value / found[0]:>12.2f}" for value in found.values()))
    print("llama.cpp decoding, tokens/s")
    print(f"{'  this process, before and after':<36}{before:>12.1f}{after:>12.1f}")
    for waiting, speed in elsewhere.items():
        print(f"{f'  a process with {waiting} threads':<36}{speed:>12.1f}")
    print(
        json.dumps(
            {
                "benchmark": "beside",
                "cpus": os.cpu_count(),
                "step_seconds": seconds,
                "decoding": {"before": before, "after": after, **elsewhere},
            }
        )
    )


if __name__ == "__main__":
    main()
