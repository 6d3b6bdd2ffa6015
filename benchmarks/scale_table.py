"""The table of benchmarks/at_scale.py as a CSV, and its figure. Knows nothing of how a line is made."""

import csv
import io
from pathlib import Path
from typing import Any

from provenance import made_by

from memdec_edge.files import atomic_path, write_text

QUANTILES = 5  # of the distance of the nearest key
COLUMNS = (
    "cell", "corpus", "tokens", "seed", "way", "steps", "best_epoch", "lambda", "base", "alone", "fixed", "online",
    "index", "memory_and_index", "general_base", "general_fixed", "general_online", "gain", "gain_error",
    *(f"gain_{part}" for part in range(1, QUANTILES + 1)), "read_tps", "search_qps", "train_tps", "cache_seconds",
    "train_seconds", "batch", "peak_gb", "device",
)  # fmt: skip


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    text.write(made_by())
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    write_text(path, text.getvalue())


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Gain over the control against tokens, in per cent of perplexity, with the paired standard error."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    with_gain = [row for row in rows if row["gain"]]
    for way in dict.fromkeys((row["corpus"], row["way"], row["seed"]) for row in with_gain):
        points = sorted(
            tuple(float(row[name]) for name in ("tokens", "gain", "gain_error"))
            for row in with_gain
            if (row["corpus"], row["way"], row["seed"]) == way
        )
        tokens, gains, errors = zip(*points, strict=True)
        axes.errorbar(tokens, gains, errors, marker="o", capsize=3, label=f"{way[0]}, {way[1]}, seed {way[2]}")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="training tokens", ylabel="perplexity below the control's, %",
             title="base + memory against base + control")  # fmt: skip
    axes.legend()
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=110)
