"""When does imitating a retriever beat plain fine-tuning? One thing at a time is varied from a base recipe.

    python benchmarks/recipe.py --teacher SmolLM2 --corpus DIR --out DIR [--tokens 24576] [--epochs 4]
                                [--only NAME ...] [--seeds 1] [--list]

Every variant is a training of `memdec_edge.train` over the same blocks in the same order; caches are shared where their
options agree. After each epoch the memory is scored on validation text, alone and mixed with the base at the best
lambda. Everything is kept in --out: run again, it goes on, and finished variants are only read.

Writes DIR/recipe.csv (a row for each epoch of each variant) and DIR/recipe.png; the last line is one JSON object. The
test split is never read here.
"""

import argparse
import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from provenance import made_by, metrics

from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.train import build_cache, train

# name -> what differs from the base recipe, which is what `train` does by itself: of the cache (target, key, k, tau as
# a factor, finetune_teacher) or of the training (TrainOptions, rate as a factor). "start": the memory starts from the
# fine-tuned teacher, whose epochs count as its own. "then": a second half of the epochs, from what the first one made.
PAPER = {"target": "knn", "finetune_teacher": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "beta 0 (control)": {"beta": 0.0},
    "kNN-LM target": {},
    "kNN-LM target, beta 0.25": {"beta": 0.25},
    "kNN-LM target, beta 0.8": {"beta": 0.8},
    "kNN-LM target, beta 1": {"beta": 1.0},
    "kNN-LM target, plain teacher": {"finetune_teacher": 0.0},
    "kNN target, beta 0.25": {**PAPER, "beta": 0.25},
    "kNN target, beta 0.5": PAPER,
    "kNN target, beta 0.75": {**PAPER, "beta": 0.75},
    "kNN target, beta 1": {**PAPER, "beta": 1.0},
    "kNN target, adapted teacher": {"target": "knn"},
    "beta 0, then 0.5": {"beta": 0.0, "then": {"beta": 0.5}},
    "beta 0.5, then 0": {"then": {"beta": 0.0}},
    "key hidden": {"key": "hidden"},
    "tau x 4": {"tau": 4.0},
    "tau / 4": {"tau": 0.25},
    "k 64": {"k": 64},
    "adapted start": {"start": True},
    "adapted start, control": {"start": True, "beta": 0.0},
    "rate / 2": {"rate": 0.5},
    "rate / 2, control": {"rate": 0.5, "beta": 0.0},
    "15 layers": {"layers": 15},
    "15 layers, control": {"layers": 15, "beta": 0.0},
    "width 320": {"hidden": 320},
    "width 320, control": {"hidden": 320, "beta": 0.0},
}
OF_CACHE = ("target", "finetune_teacher", "key", "k", "tau")


def stages(name: str, arguments: argparse.Namespace, seed: int) -> list[TrainOptions]:
    """The trainings of a variant, one after the other."""
    changes = dict(VARIANTS[name])
    cache = cache_of({key: changes.pop(key) for key in OF_CACHE if key in changes}, arguments)
    then, rate = changes.pop("then", None), arguments.lr * changes.pop("rate", 1.0)
    per_epoch, epochs, start = arguments.tokens // arguments.block // arguments.batch, arguments.epochs, None
    if changes.pop("start", False):
        build_cache(cache)
        start, epochs = cache.out / "teacher", epochs - round(cache.finetune_teacher)
    halves = [changes] if then is None else [changes, changes | then]
    options = []
    for half, chosen in enumerate(halves):
        out = arguments.out / "runs" / f"{name}, seed {seed}{', second half' * half}".replace("/", "over")
        base: dict[str, Any] = {"lr": rate, "batch": arguments.batch, "steps": per_epoch * epochs // len(halves)}
        every = {"valid_every": per_epoch, "save_every": per_epoch}
        options.append(TrainOptions(cache, out, **{"init": start, "seed": seed, **base, **every, **chosen}))
        start = out
    return options


def cache_of(changes: dict[str, Any], arguments: argparse.Namespace) -> CacheOptions:
    """The cache with these options, in a folder of its own."""
    name = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8] if changes else "base"
    options: dict[str, Any] = {"k": 256} | changes
    if "tau" in changes:  # a multiple of the base recipe's own
        options["knn_temp"] = build_cache(cache_of({}, arguments)).tau * options.pop("tau")
    out = arguments.out / "caches" / name
    return CacheOptions(
        arguments.teacher, arguments.corpus, out, block=arguments.block, max_tokens=arguments.tokens + 1, **options
    )


def curve(name: str, arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """A row for each epoch of a variant."""
    rows: list[dict[str, Any]] = []
    seconds = steps = 0.0
    for options in stages(name, arguments, seed):
        if options.init and options.init.name == "teacher":  # its epochs count
            adapted = metrics(options.init)
            seconds, steps = sum(line["seconds"] for line in adapted), len(adapted)
        train(options)
        for line in metrics(options.out):
            seconds, steps = seconds + line["seconds"], steps + 1
            if "mixture_perplexity" in line:
                names = ("valid_perplexity", "mixture_perplexity", "mixture_lambda", "ce", "kl")
                cost = {"steps": int(steps), "tokens": int(steps) * arguments.block * arguments.batch}
                cost |= {"core_minutes": round(seconds * torch.get_num_threads() / 60, 1)}
                epoch = steps / (arguments.tokens // arguments.block // arguments.batch)
                figures = {key: round(line[key], 4) for key in names}
                rows.append({"variant": name, "seed": seed, "epoch": round(epoch, 2), **figures, **cost})
    return rows


def best(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The epoch of a variant with the best mixture."""
    return min((row for row in rows if row["variant"] == name), key=lambda row: row["mixture_perplexity"])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(13, 6), layout="constrained")
    for axes, figure_name, title in zip(
        figure.subplots(1, 2), ("valid_perplexity", "mixture_perplexity"), ("alone", "mixed with the base"), strict=True
    ):
        for number, name in enumerate(dict.fromkeys(row["variant"] for row in rows)):
            points = [(row["epoch"], row[figure_name]) for row in rows if row["variant"] == name and row["seed"] == 0]
            style = "--" if "control" in name else "-"
            axes.plot(
                *zip(*points, strict=True), style, color=f"C{number % 10}", marker=".ox"[number // 10], label=name
            )
        axes.set(xlabel="epoch", ylabel="validation perplexity", title=title)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)


def write(rows: list[dict[str, Any]], folder: Path) -> None:
    with (folder / "recipe.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(made_by())
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, folder / "recipe.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "corpus", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=24_576, help="distinct tokens of training text")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--list", action="version", version="\n".join(VARIANTS), help="the names of the variants")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.only:
        for seed in range(arguments.seeds):
            rows += curve(name, arguments, seed)
        print(best(rows, name), flush=True)
        write(rows, arguments.out)
    print(json.dumps({name: best(rows, name) for name in arguments.only}))


if __name__ == "__main__":
    main()
