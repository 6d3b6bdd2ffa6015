"""MemoryLlama against LanguageModel without drafts and against stock llama_cpp.Llama: tokens a second.

    python benchmarks/dropin.py memdec-medicine.gguf [--base base.gguf] [--n-predict 96] [--repetitions 5]

All continue the same prompts with the same threads, batch, caches and lambda, flash attention on, greedily or with the
usual sampling. They take turns, so that other work on the machine hits all alike; figures are medians over prompts.
The engine decodes base and memory at the same time where that measures faster; "in turn" forbids it, as MemoryLlama
always does. The last line is one JSON object. Knows nothing of drafts.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import llama_cpp
from provenance import made_by

from memdec_edge import MemoryLlama
from memdec_edge.documents import GENERAL, read_documents
from memdec_edge.engine import Engine
from memdec_edge.llama.context import default_threads
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, SamplingOptions
from memdec_edge.workflow.demo import demo_base

N_CTX, BATCH = 1024, 512
SYSTEMS = ("Llama", "Llama, the memory", "MemoryLlama", "MemoryLlama, auto", "engine, in turn", "engine")
Seconds = tuple[float, float]  # of the prompt, of what follows


def by_llama(llama: llama_cpp.Llama) -> Callable[[list[int], float, int], Seconds]:
    def run(prompt: list[int], temperature: float, n_predict: int) -> Seconds:
        llama.reset()
        begin = perf_counter()
        stream = llama.generate(prompt, temp=temperature)
        next(stream)
        first = perf_counter()
        for _ in islice(stream, n_predict):
            pass
        return first - begin, perf_counter() - first

    return run


def by_engine(engine: Engine, in_turn: bool) -> Callable[[list[int], float, int], Seconds]:
    division = None if in_turn else engine.rounds.division

    def run(prompt: list[int], temperature: float, n_predict: int) -> Seconds:
        engine.rounds.divide(division)
        generation = GenerationOptions(n_predict=n_predict + 1, draft=0, ignore_eos=True)
        sampling = SamplingOptions(temperature=temperature, seed=1)
        limit = len(prompt) + n_predict + 1
        with closing(engine.session((), sampling, generation, limit=limit)) as session:
            for context in session.contexts:
                context.truncate(0)
            session.extend(prompt)
            begin = perf_counter()
            engine.step([session])
            first = perf_counter()
            while not session.finished:
                engine.step([session])
            return first - begin, perf_counter() - first

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("memory", type=Path)
    parser.add_argument("--base", type=Path, default=demo_base())
    parser.add_argument("--lam", type=float, default=0.5)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--n-predict", type=int, default=96)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    threads = default_threads()
    options: dict[str, Any] = {
        "n_ctx": N_CTX, "n_batch": BATCH, "n_ubatch": BATCH, "n_threads": threads, "n_threads_batch": threads,
        "flash_attn": True, "verbose": False,
    }  # fmt: skip
    with ExitStack() as stack:
        load = LoadOptions(n_ctx=N_CTX, n_batch=BATCH, threads=threads, flash_attn="on")
        engine = stack.enter_context(closing(Engine(args.base, [MemoryOptions(args.memory, args.lam)], load)))
        llamas = [
            llama_cpp.Llama(str(args.base), **options),
            llama_cpp.Llama(str(args.memory), **options),
            MemoryLlama(args.base, memories=[args.memory], lam=args.lam, **options),
            MemoryLlama(args.base, memories=[args.memory], **options),
        ]
        for llama in llamas:
            stack.callback(llama.close)
        runs = [*map(by_llama, llamas), by_engine(engine, in_turn=True), by_engine(engine, in_turn=False)]
        tokens = engine.base.tokenize(" ".join(read_documents(GENERAL)), parse_special=False)
        step = (len(tokens) - args.prompt_tokens) // args.repetitions
        prompts = [tokens[i * step :][: args.prompt_tokens] for i in range(args.repetitions)]
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name, temperature in (("greedy", 0.0), ("usual", 0.8)):
            seconds: dict[str, list[Seconds]] = {system: [] for system in SYSTEMS}
            for prompt in [prompts[0], *prompts]:  # the first is not counted
                for system, run in zip(SYSTEMS, runs, strict=True):
                    seconds[system].append(run(prompt, temperature, args.n_predict))
            found[name] = {
                system: {
                    "prompt": args.prompt_tokens / median(prompt for prompt, _ in timed[1:]),
                    "generation": args.n_predict / median(generation for _, generation in timed[1:]),
                }
                for system, timed in seconds.items()
            }
    print(made_by(), end="")
    print(
        f"{'tokens/s':<24}" + "".join(f"{f'{name}, {part}':>22}" for name in found for part in ("prompt", "generation"))
    )
    for system in SYSTEMS:
        print(
            f"{system:<24}" + "".join(f"{value:>22.1f}" for each in found.values() for value in each[system].values())
        )
    print(json.dumps({"benchmark": "dropin", "lambda": args.lam, "threads": threads, "tokens_per_second": found}))


if __name__ == "__main__":
    main()
