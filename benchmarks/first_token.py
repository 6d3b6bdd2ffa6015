"""What does it cost that weights learn: how long to the first token, and how long for those after it?

    python benchmarks/first_token.py BASE.gguf MEMORY.gguf TEXT [--lengths 512 2048] [--repeats 5] [--tokens 64]

Prompts are cut from TEXT. Systems take turns on each prompt, from empty caches: base alone; fixed weights; weights that
learn, from the prompt's last 256 tokens and from none of it. Drafts are off. Figures are medians of seconds. In
brackets are the medians of the ratios to fixed weights on the same prompt. On a busy machine the clock says little.
Look at the seconds of the CPUs there, and set OMP_WAIT_POLICY=PASSIVE. The last line is one JSON object.
"""

import argparse
import json
from contextlib import closing
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

from memdec_edge.bench.systems import cut_prompts
from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine, MemoryMixture
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, MixtureOptions, SamplingOptions

FIXED = "fixed"


class Times(NamedTuple):
    """Seconds from a prompt to its first token and from there to the last, of the clock and of all CPUs."""

    first: float
    first_cpu: float
    rest: float
    rest_cpu: float


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
            found: dict[str, list[Times]] = {name: [] for name in systems}
            for number, prompt in enumerate(cut_prompts(engine, documents, length, args.repeats + 1)):
                for name, mixture in systems.items():
                    times = run(engine, mixture, prompt, args.tokens)
                    if number:  # the first prompt warms up
                        found[name].append(times)
            for name, mine in found.items():
                pairs = list(zip(mine, found[FIXED], strict=True))
                row = {field: median(getattr(one, field) for one in mine) for field in Times._fields}
                ratios = {
                    f"{field}_to_fixed": median(getattr(one, field) / getattr(other, field) for one, other in pairs)
                    for field in Times._fields
                }
                result[f"{length} tokens, {name}"] = row | ratios
                shown = "  ".join(f"{field} {row[field]:7.3f} ({ratios[field + '_to_fixed']:.3f})" for field in row)
                print(f"{length:5} tokens  {name:22} {shown}", flush=True)
    print(json.dumps({"benchmark": "first_token", "repeats": args.repeats, "systems": result}))


def run(engine: Engine, mixture: MemoryMixture, prompt: list[int], n_tokens: int) -> Times:
    for context in (engine.context, *(memory.context for memory in engine.memories)):
        context.truncate(0)
    generation = GenerationOptions(ignore_eos=True, draft=0)
    begin, cpu_begin = perf_counter(), process_time()
    with closing(
        engine.session(prompt, SamplingOptions(seed=1), generation, mixture=mixture, limit=len(prompt) + n_tokens)
    ) as session:
        engine.step([session])
        first, cpu_first = perf_counter(), process_time()
        while not session.finished:
            engine.step([session])
        return Times(first - begin, cpu_first - cpu_begin, perf_counter() - first, process_time() - cpu_first)


if __name__ == "__main__":
    main()
