"""Speed against draft length, and what a pass costs by its rows: the figure and the numbers behind it.

    python benchmarks/drafting.py BASE.gguf MEMORY.gguf [-f TEXT] [--name NAME] [--threads 2] [--repetitions 5]

Every draft length continues the same prompts in turns, medians over them; `auto` has learned before. Passes are timed
in the middle of a continuation, logits on every row. The curve beside the measured speeds is
what those costs and the acceptance predict. Writes NAME.csv, NAME.json and NAME.png into benchmarks/results/; the last
line is the same JSON object.
"""

import argparse
import csv
import json
from collections import Counter
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from memdec_edge.bench import LEARNING
from memdec_edge.bench.figures import predicted_tps
from memdec_edge.bench.systems import Costs, Run, cut_prompts, pass_seconds, row_costs, run
from memdec_edge.documents import GENERAL, read_documents
from memdec_edge.engine import Engine
from memdec_edge.llama.context import default_threads
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, SamplingOptions
from memdec_edge.progress import progress

RESULTS = Path(__file__).with_name("results")
LENGTHS: tuple[int | None, ...] = (*range(9), 16, None)  # None: auto
ROWS = 17  # of the base: a draft of 16 tokens and the sample after it


def label(length: int | None) -> str:
    return "auto" if length is None else str(length)


def measure(engine: Engine, args: argparse.Namespace, sampling: SamplingOptions) -> dict[str, Any]:
    """Tokens per second by draft length, milliseconds by rows, acceptance."""
    mixture = engine.mixture(args.lambda_)
    prompts = cut_prompts(engine, read_documents(args.file), args.prompt_tokens, args.repetitions)
    if not prompts:
        raise SystemExit(f"{args.file} is shorter than {args.prompt_tokens} tokens; lower --prompt-tokens")
    runs: dict[int | None, list[Run]] = {length: [] for length in LENGTHS}
    costs, memory_costs = list[Costs](), list[dict[int, float]]()

    def turn(length: int | None, prompt: list[int]) -> Run:
        generation = GenerationOptions(args.predict, ignore_eos=True, draft=length)
        return run(engine, sampling, generation, mixture, prompt)

    with progress("drafting", len(LENGTHS) * len(prompts), "runs") as advance:
        turn(0, prompts[0])
        learned = engine.policy.rounds + LEARNING * len(engine.policy.overlaps)
        while engine.policy.rounds < learned:
            turn(None, prompts[0])
        for number, prompt in enumerate(prompts):
            for length in LENGTHS[:: -1 if number % 2 else 1]:
                runs[length].append(turn(length, prompt))
                advance(1)
            start = args.prompt_tokens + args.predict // 2
            costs.append(row_costs(engine, engine.memories, prompt, start, ROWS))
            memory = engine.memories[0].context  # holds as much as the base now
            tokens = list(islice(cycle(prompt), ROWS))
            memory_costs.append(
                {n: [pass_seconds(memory, tokens[:n]) for _ in range(2)][1] for n in range(1, ROWS + 1)}
            )
    cost = Costs.medians(costs)
    counted = [one.counters for found in runs.values() for one in found]
    judged = sum(one.drafted + one.guessed for one in counted)
    acceptance = sum(one.accepted + one.guessed_right for one in counted) / judged
    tps = {length: median(args.predict / one.gen_seconds for one in found) for length, found in runs.items()}
    return {
        "acceptance": acceptance,
        "lambda": sum(mixture.weights),
        "tokens_per_second": {label(length): value for length, value in tps.items()},
        "predicted": {str(g): predicted_tps(cost, acceptance, g) for g in range(ROWS)},
        "base_ms": {str(n): 1e3 * seconds for n, seconds in cost.base.items()},
        "memory_ms": {str(n): 1e3 * median(one[n] for one in memory_costs) for n in range(1, ROWS + 1)},
        "auto_lengths": dict(sorted(sum((one.counters.lengths for one in runs[None]), Counter()).items())),
    }


def write_csv(path: Path, found: dict[str, Any]) -> None:
    """One line for each measurement: what, x, y."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["series", "draft_length_or_rows", "value"])
        for series in ("tokens_per_second", "predicted", "base_ms", "memory_ms"):
            writer.writerows([series, x, f"{y:.4f}"] for x, y in found[series].items())


def draw(path: Path, found: dict[str, Any]) -> None:
    """Left: speed by draft length. Right: milliseconds by rows."""
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    speed, cost = figure.subplots(1, 2)
    measured = {int(g): tps for g, tps in found["tokens_per_second"].items() if g != "auto"}
    speed.plot(list(map(int, found["predicted"])), list(found["predicted"].values()), ":", color="0.5",
               label=f"predicted, acceptance {found['acceptance']:.2f}")  # fmt: skip
    speed.plot(list(measured), list(measured.values()), "o-", label="measured")
    speed.axhline(found["tokens_per_second"]["auto"], color="C1", label="auto")
    speed.set(xlabel="tokens drafted for a pass of the base", ylabel="tokens per second", ylim=(0, None))
    speed.legend(frameon=False)
    for name, color in (("base", "C0"), ("memory", "C2")):
        rows = found[f"{name}_ms"]
        cost.plot(list(map(int, rows)), list(rows.values()), "o-", color=color, label=name)
    cost.set(xlabel="rows of a pass, logits on each", ylabel="milliseconds", ylim=(0, None))
    cost.legend(frameon=False)
    figure.suptitle(f"{found['base']} with {found['memory']}, {found['threads']} threads")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("memory", type=Path)
    parser.add_argument("-f", "--file", type=Path, default=GENERAL)
    parser.add_argument("--name", default="drafting")
    parser.add_argument("--lambda", dest="lambda_", type=float)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("-n", "--predict", type=int, default=96)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--temp", type=float, default=SamplingOptions.temperature)
    args = parser.parse_args()
    sampling = SamplingOptions(seed=1, temperature=args.temp)
    load = LoadOptions(n_ctx=args.prompt_tokens + args.predict + ROWS, threads=args.threads)
    with closing(Engine(args.base, [MemoryOptions(args.memory)], load)) as engine:
        found = measure(engine, args, sampling)
    facts = {
        "benchmark": "drafting",
        "base": args.base.name,
        "memory": args.memory.name,
        "threads": args.threads,
        "temperature": args.temp,
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.predict,
        "repetitions": args.repetitions,
    }
    found = facts | found
    RESULTS.mkdir(exist_ok=True)
    write_csv(RESULTS / f"{args.name}.csv", found)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(RESULTS / f"{args.name}.png", found)
    for length, tps in found["tokens_per_second"].items():
        print(f"draft {length:>4}: {tps:8.1f} tokens/s")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
