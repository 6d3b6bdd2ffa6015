"""What the likeliest tokens of each step cost (GenerationOptions.logprobs), beside steps that do not tell them.

    python benchmarks/logprobs.py MEMORY.gguf [--base BASE.gguf] [--threads 2] [--turns 12]

SmolLM2-135M unless another base is given, draft 0, greedy, so both ways decode the same tokens. The ways take turns of
32 tokens each at the same positions. Of every turn the median step counts, and the figure is the median ratio over the
turns: base alone and base with memory, for N = 0 (control), 5 and 20. Memory: resident bytes before and after 400
tokens with N = 5 at a context that is already allocated, less what the chunks themselves take.

The last line is one JSON object. Medians need a machine without other work.
"""

import argparse
import gc
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import psutil

from memdec_edge.engine import Engine, MemoryMixture
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, SamplingOptions
from memdec_edge.workflow.demo import demo_base

PROMPT, TURN, N_CTX = 64, 32, 1024  # tokens
GREEDY = SamplingOptions(temperature=0)
PLAIN = GenerationOptions(draft=0, ignore_eos=True)


def turn(engine: Engine, prompt: list[int], mixture: MemoryMixture, count: int) -> float:
    """Seconds of the median step with `count` likeliest tokens."""
    generation = replace(PLAIN, logprobs=count)
    with closing(engine.session(prompt, GREEDY, generation, mixture=mixture)) as session:
        engine.step([session])  # prefill
        times = []
        for _ in range(TURN):
            begin = perf_counter()
            engine.step([session])
            times.append(perf_counter() - begin)
    return median(times)


def growth(engine: Engine, prompt: list[int], mixture: MemoryMixture) -> int:
    """Bytes of resident memory that 400 tokens add, whose samples are dropped."""
    process, generation = psutil.Process(), replace(PLAIN, logprobs=5)
    with closing(engine.session(prompt, GREEDY, generation, mixture=mixture)) as session:
        for _ in range(50):
            engine.step([session])
        gc.collect()
        before: int = process.memory_info().rss
        for _ in range(400):
            engine.step([session])
        gc.collect()
        after: int = process.memory_info().rss
    return after - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memory", type=Path)
    parser.add_argument("--base", type=Path, default=demo_base())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=12)
    given = parser.parse_args()
    options = LoadOptions(n_ctx=N_CTX, threads=given.threads)
    with closing(Engine(given.base, [MemoryOptions(given.memory, 0.5)], options)) as engine:
        prompt = engine.base.tokenize("Anaemia is a lack of red blood cells. " * 20)[:PROMPT]
        mixtures = {"base alone": MemoryMixture.of(()), "with the memory": engine.mixture()}
        found = {}
        for name, mixture in mixtures.items():
            rounds = [{count: turn(engine, prompt, mixture, count) for count in (0, 5, 20)} for _ in range(given.turns)]
            control = [turn(engine, prompt, mixture, 0) for _ in range(given.turns)]
            found[name] = {
                "step_ms": 1e3 * median(each[0] for each in rounds),
                "control": median(other / each[0] for other, each in zip(control, rounds, strict=True)),
                "ratio_5": median(each[5] / each[0] for each in rounds),
                "ratio_20": median(each[20] / each[0] for each in rounds),
                "growth_bytes": growth(engine, prompt, mixture),
            }
            print(
                f"{name:<16} {found[name]['step_ms']:6.2f} ms a step; N=5 {found[name]['ratio_5']:.3f}, "
                f"N=20 {found[name]['ratio_20']:.3f}, control {found[name]['control']:.3f}; "
                f"400 tokens more: {found[name]['growth_bytes'] / 1024:.0f} KiB"
            )
    print(json.dumps({"benchmark": "logprobs", "threads": given.threads, "turns": given.turns, **found}))


if __name__ == "__main__":
    main()
