"""Tokens per second with an index, beside the base alone: without drafts, and with drafts.

    python benchmarks/index_speed.py BASE.gguf INDEX.gguf --text NAME=PATH [NAME=PATH ...] [--memory MEMORY.gguf]
                                     [--prompts 5] [--predict 128] [--threads 0]

Each system continues the same prompts of 256 tokens, which are cut from the text at even distances, and the systems
take turns. Figures are medians over the prompts. The engine's policy first learns on the first prompt. Acceptance is by
the class of match length: how many emitted tokens had such a match before them, and how many of them were its likeliest
continuation. The last line is one JSON object.
"""

import argparse
import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from memdec_edge.bench.systems import cut_prompts, run
from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine, MemoryMixture
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, MixtureOptions, SamplingOptions

PROMPT = 256  # tokens
LEARNING = 150  # rounds before anything counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("--text", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--predict", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    memories = [MemoryOptions(path) for path in (args.memory, args.index) if path]
    found: dict[str, Any] = {}
    for name, path in (each.split("=", 1) for each in args.text):
        with closing(Engine(args.base, memories, LoadOptions(n_ctx=1024, threads=args.threads))) as engine:
            prompts = cut_prompts(engine, read_documents(Path(path)), PROMPT, args.prompts)
            found[name] = measured(engine, prompts, args.predict)
        print(f"{name:12}" + "".join(f"  {system} {value:.3g}" for system, value in found[name]["ratio"].items()))
        for klass, (seen, right) in found[name]["matches"].items():
            print(f"  class {klass}: {seen} tokens, {right / seen:.0%} right")
    print(json.dumps({"benchmark": "index_speed", "texts": found}))


def measured(engine: Engine, prompts: list[list[int]], n_predict: int) -> dict[str, Any]:
    """Tokens per second of each system, their ratios to the base, and matches by class."""
    sampling, mixture = SamplingOptions(seed=1), engine.mixture(MixtureOptions())
    systems = {
        "base": (0, MemoryMixture.of([])),
        "without drafts": (0, mixture),
        "with drafts": (None, mixture),
    }
    rates: dict[str, list[float]] = {name: [] for name in systems}
    matched, right, drafted, accepted = Counter[int](), Counter[int](), 0, 0
    while engine.policy.rounds < LEARNING:
        run(engine, sampling, GenerationOptions(n_predict, ignore_eos=True), mixture, prompts[0])
    for number, prompt in enumerate(prompts):
        for name in list(systems)[:: -1 if number % 2 else 1]:
            draft, mixed = systems[name]
            done = run(engine, sampling, GenerationOptions(n_predict, ignore_eos=True, draft=draft), mixed, prompt)
            rates[name].append(n_predict / done.gen_seconds)
            if name == "with drafts":
                matched.update(done.counters.matched)
                right.update(done.counters.matched_right)
                drafted, accepted = drafted + done.counters.drafted, accepted + done.counters.accepted
    ratios = {
        name: median(one / base for one, base in zip(rates[name], rates["base"], strict=True))
        for name in systems if name != "base"
    }  # fmt: skip
    return {
        "tokens per second": {name: median(values) for name, values in rates.items()},
        "ratio": dict(ratios),
        "drafts": {"verified": drafted, "accepted": accepted},
        "matches": {str(klass): [matched[klass], right[klass]] for klass in sorted(matched)},
    }


if __name__ == "__main__":
    main()
