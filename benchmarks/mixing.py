"""Time of the mixture: C in each variant of this machine, the float64 reference, a straightforward float32 NumPy.

    python benchmarks/mixing.py [--repeat 31]

One thread; medians over interleaved repetitions, each after an untimed one, so that the rows are in the caches as far
as they fit. The last line is one JSON object. Knows nothing of models.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from memdec_edge import _native
from memdec_edge.mixture import mixing, reference
from memdec_edge.mixture.rows import Row
from memdec_edge.mixture.weights import Mixture

VOCABULARIES = {"SmolLM2": 49_152, "Qwen2.5": 151_936, "Gemma": 262_144}


def straightforward(base: Row, memories: list[Row], weights: Sequence[float]) -> Row:
    """What one writes first: probabilities in float32, their mixture, its logarithm; no statistics, no scale."""

    def softmax(row: Row) -> Row:
        shares: Row = np.exp(row - row.max())
        shares /= shares.sum()
        return shares

    mixed = np.float32(1 - sum(weights)) * softmax(base)
    for memory, weight in zip(memories, weights, strict=True):
        mixed += np.float32(weight) * softmax(memory)
    with np.errstate(divide="ignore"):
        np.log(mixed, out=mixed)
    return mixed


def microseconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return 1e6 * (time.perf_counter() - begin)


def measure(n_vocab: int, n_memories: int, repeat: int) -> dict[str, float]:
    """Median microseconds of each implementation."""
    rng = np.random.default_rng(n_vocab)
    base, *memories = ((rng.normal(size=n_vocab) * 4).astype(np.float32) for _ in range(1 + n_memories))
    mixture, out = Mixture((0.6 / n_memories,) * n_memories, (1.0,) * n_memories), np.empty_like(base)

    def native(variant: str) -> Callable[[], object]:
        def work() -> None:
            _native.select(variant)
            mixing.mix(base, memories, mixture, out)

        return work

    works = {f"native ({variant})": native(variant) for variant in _native.variants()}
    works["numpy float32"] = lambda: straightforward(base, memories, mixture.weights)
    works["numpy float64"] = lambda: reference.mix(base, memories, mixture)
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeat):
        for name, work in works.items():
            work()  # the one before has filled the caches with its own
            found[name].append(microseconds(work))
    return {name: median(times) for name, times in found.items()}


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=31)
    repeat = parser.parse_args().repeat
    chosen = mixing.implementation()
    results: list[dict[str, object]] = []
    for n_memories in (1, 2):
        for family, n_vocab in VOCABULARIES.items():
            times = measure(n_vocab, n_memories, repeat)
            if not results:
                print(
                    f"{'vocabulary':>10} {'memories':>8} "
                    + " ".join(f"{name:>17}" for name in times)
                    + "  microseconds"
                )
            print(f"{n_vocab:>10,} {n_memories:>8} " + " ".join(f"{time:>17,.0f}" for time in times.values()), family)
            best = times[chosen]
            results.append(
                {
                    "vocabulary": n_vocab,
                    "memories": n_memories,
                    "microseconds": {name: round(value, 1) for name, value in times.items()},
                    "times_faster": {name: round(value / best, 1) for name, value in times.items() if name != chosen},
                }
            )
    print(json.dumps({"benchmark": "mixing", "machine": cpu_name(), "implementation": chosen, "results": results}))


if __name__ == "__main__":
    main()
