"""What does it cost that weights learn: seconds to the first token, and tokens a second afterwards?

    python benchmarks/first_token.py BASE.gguf MEMORY.gguf TEXT [--lengths 512 2048] [--repeats 5] [--tokens 64]

Prompts are cut from TEXT. Systems take turns on each prompt, from empty caches: base alone; fixed weights; weights that
learn, from the prompt's last 256 tokens and from none of it. Drafts are off. Figures are medians; ratios are medians of
the ratios to fixed weights on the same prompt. The last line is one JSON object.
"""

import argparse
import json
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from statistics import median
from time import perf_counter

from memdec_edge.bench.systems import cut_prompts
from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine, MemoryMixture
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, MixtureOptions, SamplingOptions

FIXED = "fixed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("memory", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    load = LoadOptions(n_ctx=max(args.lengths) + args.tokens)
    result = {}
    with closing(Engine(args.base, [MemoryOptions(args.memory)], load)) as engine:
        systems = {
            "base": MemoryMixture.of(()),
            FIXED: engine.mixture(MixtureOptions(total=0.5)),
            "auto": engine.mixture(MixtureOptions()),
            "auto, prompt not read": engine.mixture(MixtureOptions(evidence=0)),
        }
        documents = read_documents(args.text)
        for length in args.lengths:
            first, rest = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
            for number, prompt in enumerate([*cut_prompts(engine, documents, length, args.repeats + 1)]):
                for name, mixture in systems.items():
                    seconds = run(engine, mixture, prompt, args.tokens)
                    if number:  # the first prompt warms up
                        first[name].append(seconds[0])
                        rest[name].append(seconds[1])
            for name in systems:
                found = {
                    "first_token_s": median(first[name]),
                    "ratio": median(a / b for a, b in zip(first[name], first[FIXED], strict=True)),
                    "tokens_per_second": (args.tokens - 1) / median(rest[name]),
                    "decoding_ratio": median(a / b for a, b in zip(rest[name], rest[FIXED], strict=True)),
                }
                result[f"{length} tokens, {name}"] = found
                times = f"first token {found['first_token_s']:7.3f} s ({found['ratio']:.3f} of fixed)"
                speeds = f"then {found['tokens_per_second']:6.1f} tokens/s ({found['decoding_ratio']:.3f} of the time)"
                print(f"{length:5} tokens  {name:22} {times}, {speeds}", flush=True)
    print(json.dumps({"benchmark": "first_token", "repeats": args.repeats, "systems": result}))


def run(engine: Engine, mixture: MemoryMixture, prompt: list[int], n_tokens: int) -> tuple[float, float]:
    """Seconds from a prompt to its first token, and from there to the last."""
    for context in (engine.context, *(memory.context for memory in engine.memories)):
        context.truncate(0)
    generation = GenerationOptions(ignore_eos=True, draft=0)
    begin = perf_counter()
    with closing(
        engine.session(prompt, SamplingOptions(seed=1), generation, mixture=mixture, limit=len(prompt) + n_tokens)
    ) as session:
        engine.step([session])
        first = perf_counter()
        while not session.finished:
            engine.step([session])
        return first - begin, perf_counter() - first


if __name__ == "__main__":
    main()
