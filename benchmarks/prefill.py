"""How fast are many short prompts read: one after the other, or together in common batches?

    python benchmarks/prefill.py BASE.gguf MEMORY.gguf TEXT [--prompts 8] [--length 40] [--repeats 7] [--threads 2]

Systems: the base alone, a fixed weight, and weights that learn from the prompts. Prompts are cut from TEXT. Both ways
take turns from empty caches, and read the same prompts: Session.prefill() of each, or one Engine.read(). Figures are
medians of tokens a second, and of the ratios. Beside them: the ratio in seconds of the CPUs, which counts on a busy
machine with one thread; and how far weights, and log-probs of the token after each prompt, differ between the two ways
at most. The last line is one JSON object.
"""

import argparse
import json
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from provenance import made_by

from memdec_edge.bench.systems import cut_prompts
from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine, MemoryMixture
from memdec_edge.options import LoadOptions, MemoryOptions, MixtureOptions

Found = list[tuple[tuple[float, ...], npt.NDArray[np.float32]]]  # of each prompt: weights, log-probs after it


class Times(NamedTuple):
    """Seconds of the clock and of all CPUs."""

    clock: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("memory", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    load = LoadOptions(n_ctx=args.prompts * args.length + 256, n_seq=args.prompts, threads=args.threads)
    print(made_by(), end="")
    result = {}
    with closing(Engine(args.base, [MemoryOptions(args.memory)], load)) as engine:
        systems = {
            "base": MemoryMixture.of(()),
            "fixed": engine.mixture(MixtureOptions(total=0.5)),
            "auto": engine.mixture(MixtureOptions()),
        }
        text = cut_prompts(engine, read_documents(args.text), args.length, args.prompts * (args.repeats + 1))
        for name, mixture in systems.items():
            times: dict[bool, list[Times]] = {False: [], True: []}
            apart = [0.0, 0.0]
            for number in range(args.repeats + 1):
                prompts = text[number :: args.repeats + 1]
                found = []
                for together in (False, True) if number % 2 else (True, False):
                    taken, numbers = read(engine, mixture, prompts, together)
                    found.append(numbers)
                    if number:  # the first prompts warm up
                        times[together].append(taken)
                for (mine, row), (theirs, other) in zip(*found, strict=True):
                    apart[0] = max(apart[0], float(np.abs(np.subtract(mine, theirs)).max()))
                    apart[1] = max(apart[1], float(np.abs(row - other).max()))
            pairs = list(zip(times[False], times[True], strict=True))
            tokens = args.prompts * (args.length - 1)  # the last one waits for the first step
            row = {
                "one by one": tokens / median(one.clock for one in times[False]),
                "together": tokens / median(one.clock for one in times[True]),
                "ratio": median(a.clock / b.clock for a, b in pairs),
                "ratio of CPU seconds": median(a.cpu / b.cpu for a, b in pairs),
                "weights apart": apart[0],
                "log-probs apart": apart[1],
            }
            result[name] = row
            print(f"{name:6}" + "".join(f"  {what} {value:9.4g}" for what, value in row.items()), flush=True)
    print(json.dumps({"benchmark": "prefill", "prompts": args.prompts, "length": args.length, "systems": result}))


def read(engine: Engine, mixture: MemoryMixture, prompts: list[list[int]], together: bool) -> tuple[Times, Found]:
    """The time in which the prompts were read, and what was found in them."""
    for context in (engine.context, *(memory.context for memory in engine.memories)):
        context.clear()
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(closing(engine.session(prompt, mixture=mixture, limit=len(prompt) + 1)))
            for prompt in prompts
        ]
        begin, cpu_begin = perf_counter(), process_time()
        if together:
            engine.read(dict.fromkeys(sessions))
        else:
            for session in sessions:
                session.prefill()
        taken = Times(perf_counter() - begin, process_time() - cpu_begin)
        return taken, [(session.mixture.shares, log_probs(session.logits())) for session in sessions]


def log_probs(row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Of a mixed row, nats; ids of a probability under 1e-4 count as equal."""
    wide = row.astype(np.float64)
    found: npt.NDArray[np.float32] = np.maximum(wide - np.logaddexp.reduce(wide), np.log(1e-4)).astype(np.float32)
    return found


if __name__ == "__main__":
    main()
