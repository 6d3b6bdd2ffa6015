"""Time of the mixture: C in each variant of this machine, the float64 reference, a straightforward float32 NumPy.

    python benchmarks/mixing.py [--repeat 31]

Then what weights that learn online add to the verification of a draft. One thread; medians over interleaved
repetitions, each after an untimed one, so that the rows are in the caches as far as they fit. The last line is one JSON
object. Knows nothing of models.
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
from memdec_edge.mixture import mixing, reference, sampling
from memdec_edge.mixture.rows import Chain, Row
from memdec_edge.mixture.weights import Mixture, SoftBayes

N_ROWS = 5  # of one verification: a draft of 4 tokens and the sample after it
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
    return medians(works, repeat)


def measure_verify(n_vocab: int, n_memories: int, repeat: int) -> dict[str, float]:
    """Median microseconds of verifying an accepted draft with fixed weights and with weights that learn."""
    rng = np.random.default_rng(n_vocab)
    base, *memories = ((rng.normal(size=(N_ROWS, n_vocab)) * 4).astype(np.float32) for _ in range(1 + n_memories))
    mixture = Mixture((0.6 / n_memories,) * n_memories, (1.0,) * n_memories)
    out, scratch = np.empty(n_vocab, np.float32), sampling.scratch(n_vocab)

    def work(draft: list[int], rule: SoftBayes | None) -> list[int]:
        verified = sampling.verify(
            base, memories, mixture, Chain(40, 0.95, 0.05, 0.8), 1, 0, np.zeros(0, np.int32), draft, out, scratch, rule
        )
        return [sample.token for sample in verified.samples]

    def verification(rule: SoftBayes | None) -> Callable[[], object]:
        draft: list[int] = []
        while len(draft) < N_ROWS:  # what is sampled is the draft of the timed runs
            draft = work([*draft, *[-1] * (N_ROWS - len(draft))], rule)
        return lambda: work(draft, rule)

    return medians({"fixed": verification(None), "online": verification(SoftBayes(mixture.weights))}, repeat)


def medians(works: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Median microseconds of each work."""
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
    print(
        f"\n{'vocabulary':>10} {'memories':>8} {'fixed':>9} {'online':>9}  microseconds to verify {N_ROWS} rows; ratio"
    )
    verifying: list[dict[str, object]] = []
    _native.select(_native.variants()[0])
    for n_memories in (1, 2):
        for n_vocab in VOCABULARIES.values():
            times = measure_verify(n_vocab, n_memories, repeat)
            ratio = times["online"] / times["fixed"]
            print(f"{n_vocab:>10,} {n_memories:>8} {times['fixed']:>9,.0f} {times['online']:>9,.0f}  {ratio:.3f}")
            verifying.append({"vocabulary": n_vocab, "memories": n_memories, "rows": N_ROWS, "ratio": round(ratio, 3)})
            verifying[-1]["microseconds"] = {name: round(value, 1) for name, value in times.items()}
    found = {"machine": cpu_name(), "implementation": chosen, "results": results, "verify": verifying}
    print(json.dumps({"benchmark": "mixing"} | found))


if __name__ == "__main__":
    main()
