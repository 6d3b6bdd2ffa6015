"""A memory for another vocabulary: what does each budget give, and what is the start worth?

    python benchmarks/adapt_curve.py MEMORY_DIR --to BASE --corpus DIR --out DIR [--cells START-FROZEN-SHARE ...]
                                     [--lr RATE] [--lr-afresh RATE] [--max-tokens 0] [--positions 8192]

A cell is a training with beta 0. START says what learns:

    composed   the memory's body, with rows of BASE's vocabulary as `adapt` makes them
    random     the same body, with random rows, normal with deviation 0.02
    afresh     a copy of BASE

FROZEN is the share of the steps in which embedding and head learn alone. SHARE is the budget, of the memory's training
tokens. Figures are of validation text: perplexity before and after training, of BASE, and mixed with it at the best
lambda. They are of one vocabulary, so a column compares. Run again, it goes on. The last line is one JSON object.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import write_rows
from safetensors.torch import load_file

from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.train import train
from memdec_edge.train.adapting import trained_tokens
from memdec_edge.train.checkpoint import write_copy
from memdec_edge.train.models import load_source
from memdec_edge.train.pipeline import BASE
from memdec_edge.train.transplant import Rows, rows_from, transplanted

BLOCK, BATCH = 256, 4
STARTS = ("composed", "random", "afresh")
CELLS = [
    *(f"composed-0.2-{share}" for share in ("0.01", "0.03", "0.1", "0.3")),
    *("composed-0-0.1", "random-0.2-0.1", "random-0.2-0.3", "afresh-0-0.1", "afresh-0-1"),
]


@dataclass(frozen=True)
class RandomRows(Rows):  # type: ignore[misc]
    """Rows that know nothing of the old ones, as models begin with them."""

    def of(self, old: torch.Tensor, n_rows: int) -> torch.Tensor:
        return 0.02 * torch.randn(n_rows, *old.shape[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memory", type=Path)
    for name in ("to", "corpus", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--lr", type=float, help="else the best of a few short trials, in each cell")
    parser.add_argument("--lr-afresh", type=float, help="of the copies of BASE")
    parser.add_argument("--max-tokens", type=int, default=0, help="training tokens to use at most; 0: all")
    parser.add_argument("--positions", type=int, default=TrainOptions.valid_positions, help="of validation text")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    trained = trained_tokens(args.memory)
    cache = CacheOptions(args.to, args.corpus, args.out / "cache", block=BLOCK, batch=BATCH, max_tokens=args.max_tokens)
    rows: list[dict[str, Any]] = []
    for cell in args.cells:
        start, frozen, share = cell.split("-")
        if start not in STARTS:
            parser.error(f"{cell}: a cell begins with one of {', '.join(STARTS)}")
        options = TrainOptions(
            cache, args.out / cell, init=args.to if start == "afresh" else started(args, start), beta=0.0,
            steps=max(round(float(share) * trained / BLOCK / BATCH), 1), freeze_body=float(frozen), valid_every=0,
            lr=args.lr_afresh if start == "afresh" else args.lr, valid_positions=args.positions,
        )  # fmt: skip
        report = train(options)
        rows.append(
            {
                "start": start, "frozen": float(frozen), "share": float(share), "tokens": report.tokens,
                "best_step": report.best_step, "before": report.start_perplexity, "alone": report.valid_perplexity,
                "base": float(load_file(args.out / cell / BASE)["losses"].double().mean().exp()),
                "mixture": report.mixture_perplexity, "lambda": report.mixture_lambda,
            }
        )  # fmt: skip
        write_rows(args.out / "adapt.csv", rows)
    print((args.out / "adapt.csv").read_text(encoding="utf-8"))
    print(json.dumps({"benchmark": "adapt_curve", "rows": rows}))


def started(args: argparse.Namespace, start: str) -> Path:
    """The memory with rows for the new vocabulary."""
    folder: Path = args.out / f"start-{start}"
    if not folder.is_dir():
        old, new = load_source(args.memory), load_source(args.to)
        rows = rows_from(old, new)
        if start == "random":
            torch.manual_seed(0)
            rows = RandomRows({}, 0, 0)
        write_copy(folder, transplanted(old, new, rows), new.tokenizer)
    return folder


if __name__ == "__main__":
    main()
