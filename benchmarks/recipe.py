"""When does imitating a retriever beat plain fine-tuning? One thing at a time is varied from a base recipe.

    python benchmarks/recipe.py --teacher SmolLM2.gguf --corpus DIR --out DIR [--tokens 16384] [--epochs 6]
                                [--only NAME ...] [--seeds 1] [--list]

Every variant is a training of `memdec_edge.train` with the same steps over the same blocks in the same order; caches
are shared where their options agree. After each epoch the memory is scored on validation text, alone and mixed with the
base at the best lambda. Everything is kept in --out: run again, it goes on, and finished variants are only read.

Writes DIR/recipe.csv (variant, seed, epoch, perplexities, lambda) and DIR/recipe.png; the last line is one JSON object.
The test split is never read here.
"""

import argparse
import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.train import build_cache, train

# name -> what differs from the base recipe, of the cache's options and of the training's; "then" is a second half that
# starts from the first one's memory.
VARIANTS: dict[str, dict[str, Any]] = {
    "beta 0 (control)": {"beta": 0.0},
    "beta 0.5": {},
    "beta 0.25": {"beta": 0.25},
    "beta 0.75": {"beta": 0.75},
    "beta 1": {"beta": 1.0},
    "beta 0, then 0.5": {"beta": 0.0, "then": {"beta": 0.5}},
    "beta 0.5, then 0": {"then": {"beta": 0.0}},
    "key mlp_input": {"key": "mlp_input"},
    "tau x 4": {"tau": 4.0},
    "tau / 4": {"tau": 0.25},
    "k 64": {"k": 64},
    "adapted teacher": {"finetune_teacher": 32},
    "rate x 2": {"rate": 2.0},
    "rate x 2, control": {"rate": 2.0, "beta": 0.0},
    "15 layers": {"layers": 15},
    "15 layers, control": {"layers": 15, "beta": 0.0},
}
OF_CACHE = ("key", "k", "finetune_teacher", "knn_temp")


def stages(name: str, arguments: argparse.Namespace, seed: int) -> Iterator[TrainOptions]:
    """The trainings of a variant, one after the other."""
    changes = dict(VARIANTS[name])
    then, rate = changes.pop("then", None), arguments.lr * changes.pop("rate", 1.0)
    if "tau" in changes:  # of the base recipe's own
        changes["knn_temp"] = build_cache(cache_of({}, arguments)).tau * changes.pop("tau")
    cache = cache_of({key: changes.pop(key) for key in OF_CACHE if key in changes}, arguments)
    steps = arguments.tokens // arguments.block // arguments.batch  # of an epoch
    halves = [changes] if then is None else [changes, changes | then]
    start: Path | None = None
    for half, options in enumerate(halves):
        out = arguments.out / "runs" / f"{name}, seed {seed}{', second half' * half}".replace("/", "over")
        base = TrainOptions(
            cache, out, steps=steps * arguments.epochs // len(halves), lr=rate, batch=arguments.batch, seed=seed,
            valid_every=steps, save_every=steps,
        )  # fmt: skip
        yield replace(base, init=start, **options)
        start = out


def cache_of(changes: dict[str, Any], arguments: argparse.Namespace) -> CacheOptions:
    """The cache with these options, in a folder of its own."""
    name = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8] if changes else "base"
    return CacheOptions(
        arguments.teacher, arguments.corpus, arguments.out / "caches" / name, block=arguments.block,
        max_tokens=arguments.tokens + 1, **{"k": 256} | changes,
    )  # fmt: skip


def curve(name: str, arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """A row for each epoch of a variant."""
    rows: list[dict[str, Any]] = []
    for options in stages(name, arguments, seed):
        train(options)
        for line in (options.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            if "mixture_perplexity" in found:
                names = ("valid_perplexity", "mixture_perplexity", "mixture_lambda", "ce", "kl")
                figures = {key: round(found[key], 4) for key in names}
                rows.append({"variant": name, "seed": seed, "epoch": len(rows) + 1, **figures})
    return rows


def best(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The epoch of a variant with the best mixture."""
    return min((row for row in rows if row["variant"] == name), key=lambda row: row["mixture_perplexity"])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, figure_name, title in zip(
        figure.subplots(1, 2), ("valid_perplexity", "mixture_perplexity"), ("alone", "mixed with the base"), strict=True
    ):
        for name in dict.fromkeys(row["variant"] for row in rows):
            points = [(row["epoch"], row[figure_name]) for row in rows if row["variant"] == name and row["seed"] == 0]
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set(xlabel="epoch", ylabel="validation perplexity", title=title)
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "corpus", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16_384, help="distinct tokens of training text")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-4)
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
        with (arguments.out / "recipe.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        draw(rows, arguments.out / "recipe.png")
    print(json.dumps({name: best(rows, name) for name in arguments.only}))


if __name__ == "__main__":
    main()
