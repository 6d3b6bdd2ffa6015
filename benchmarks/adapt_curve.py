"""A memory for another vocabulary: what does each budget give, and what is the start worth?

    python benchmarks/adapt_curve.py MEMORY_DIR --to BASE --corpus DIR --out DIR [--shares .01 .03 .1 .3]
                                     [--starts composed random] [--frozen .2 0] [--afresh]

Each cell is a training with beta 0 of the memory's body, with rows of BASE's vocabulary: composed as `adapt` does, or
random with the spread of the old ones. --frozen: shares of the steps in which embedding and head learn alone. --afresh
adds a copy of BASE's own weights as the memory, with a tenth of the budget and with all of it. Figures are of
validation text: perplexity of the memory alone before and after training, and mixed with BASE at the best lambda. They
are of one vocabulary, so a column compares. Run again, it goes on. The last line is one JSON object.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import write_rows

from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.train import train
from memdec_edge.train.adapting import trained_tokens
from memdec_edge.train.checkpoint import write_copy
from memdec_edge.train.models import load_source
from memdec_edge.train.transplant import Rows, rows_from, transplanted

BLOCK, BATCH = 256, 4


@dataclass(frozen=True)
class RandomRows(Rows):  # type: ignore[misc]
    """Rows that know nothing of the old ones but their spread."""

    def of(self, old: torch.Tensor, n_rows: int) -> torch.Tensor:
        torch.manual_seed(0)
        return torch.randn(n_rows, *old.shape[1:]) * old.std()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memory", type=Path)
    for name in ("to", "corpus", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3])
    parser.add_argument("--starts", nargs="+", choices=("composed", "random"), default=["composed", "random"])
    parser.add_argument("--frozen", type=float, nargs="+", default=[0.2, 0.0])
    parser.add_argument("--afresh", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    trained = trained_tokens(args.memory)
    cells: list[tuple[str, float, float]] = [
        (start, frozen, share) for start in args.starts for frozen in args.frozen for share in args.shares
    ]
    cells += [("afresh", 0.0, share) for share in (0.1, 1.0) if args.afresh]
    rows: list[dict[str, Any]] = []
    for start, frozen, share in cells:
        steps = max(round(share * trained / BLOCK / BATCH), 1)
        init = args.to if start == "afresh" else started(args, start)
        name = f"{start}-{frozen:g}-{share:g}"
        cache = CacheOptions(args.to, args.corpus, args.out / "cache", block=BLOCK, batch=BATCH)
        options = TrainOptions(
            cache, args.out / name, init=init, steps=steps, beta=0.0, freeze_body=frozen, valid_every=0
        )
        report = train(options)
        rows.append(
            {
                "start": start, "frozen": frozen, "share": share, "steps": steps, "best_step": report.best_step,
                "before": report.start_perplexity, "alone": report.valid_perplexity,
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
            rows = RandomRows({}, 0, 0)
        write_copy(folder, transplanted(old, new, rows), new.tokenizer)
    return folder


if __name__ == "__main__":
    main()
