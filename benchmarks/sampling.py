"""Time of one sample: ours in each variant of this machine and in NumPy, and llama.cpp's own chain on the same row.

    python benchmarks/sampling.py [--repeat 101]

One thread; medians over interleaved repetitions, each after an untimed one. llama.cpp's side fills its array of
candidates from the row, as it must for every token, and applies its chain with a seeded draw. Rows of normal logits
are harder than a model's: many tokens share the probability. The last line is one JSON object. Knows nothing of models.
"""

import argparse
import ctypes
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import llama_cpp
import numpy as np

from memdec_edge import _native
from memdec_edge.mixture import mixing, reference, sampling
from memdec_edge.mixture.rows import Chain, Row

VOCABULARIES = {"SmolLM2": 49_152, "Qwen2.5": 151_936}
CHAINS = {
    "greedy": Chain(40, 0.95, 0.05, 0.0),
    "default": Chain(40, 0.95, 0.05, 0.8),
    "temperature 1": Chain(0, 1.0, 0.0, 1.0),
    "top-p 0.95": Chain(0, 0.95, 0.0, 1.0),
}
NONE = np.zeros(0, np.int32)
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def llama_sample(row: Row, chain: Chain) -> Callable[[], object]:
    """One sample by llama.cpp: the samplers that `chain` switches on, and dist or greedy."""
    sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if chain.temperature > 0:
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_top_k(chain.top_k))
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_top_p(chain.top_p, 1))
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_min_p(chain.min_p, 1))
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_temp(chain.temperature))
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_dist(1))
    else:
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_greedy())
    data, ids = np.zeros(len(row), TOKEN_DATA), np.arange(len(row), dtype=np.int32)
    pointer = ctypes.cast(data.ctypes.data, llama_cpp.llama_token_data_p)

    def work() -> int:
        data["id"], data["logit"] = ids, row
        array = llama_cpp.llama_token_data_array(pointer, len(data), -1, False)
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
        return int(array.data[array.selected].id)

    return work


def our_sample(row: Row, chain: Chain, variant: str) -> Callable[[], object]:
    scratch, position = sampling.scratch(len(row)), iter(range(1 << 62))

    def work() -> int:
        _native.select(variant)
        return sampling.sample(row, chain, 1, next(position), NONE, scratch)

    return work


def microseconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return 1e6 * (time.perf_counter() - begin)


def measure(row: Row, chain: Chain, repeat: int) -> dict[str, float]:
    """Median microseconds of each implementation."""
    works = {f"native ({variant})": our_sample(row, chain, variant) for variant in _native.variants()}
    works["llama.cpp"] = llama_sample(row, chain)
    works["numpy"] = lambda: reference.sample(row, chain, 1, 0, NONE)
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
    parser.add_argument("--repeat", type=int, default=101)
    repeat = parser.parse_args().repeat
    chosen = mixing.implementation()
    results: list[dict[str, object]] = []
    for family, n_vocab in VOCABULARIES.items():
        row = (np.random.default_rng(n_vocab).normal(size=n_vocab) * 4).astype(np.float32)
        for name, chain in CHAINS.items():
            times = measure(row, chain, repeat)
            if not results:
                print(f"{'vocabulary':>10} {'chain':<14} " + " ".join(f"{key:>17}" for key in times) + "  microseconds")
            print(f"{n_vocab:>10,} {name:<14} " + " ".join(f"{t:>17,.1f}" for t in times.values()), family, flush=True)
            results.append(
                {
                    "vocabulary": n_vocab,
                    "chain": name,
                    "microseconds": {key: round(value, 1) for key, value in times.items()},
                    "times_faster_than_llama_cpp": round(times["llama.cpp"] / times[chosen], 1),
                }
            )
    print(json.dumps({"benchmark": "sampling", "machine": cpu_name(), "implementation": chosen, "results": results}))


if __name__ == "__main__":
    main()
