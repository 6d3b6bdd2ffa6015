"""`memdec-edge learn`: the plan's times against the truth, and what the time buys.

    python benchmarks/learning.py OUT --text licences=licences/train.jsonl --budgets 5m 15m [--characters 1000000]

Each row is one run of the command in a process of its own, from the first documents of a file. OUT keeps the folders,
so that a run that was stopped goes on, and then has no time. Nothing else may run meanwhile. The last line is one JSON
object. Knows nothing of how learn plans.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from provenance import made_by

from memdec_edge.workflow.demo import demo_base


def documents(name: str, file: Path, characters: int, out: Path) -> Path:
    """A folder with the first documents of a jsonl file."""
    folder = out / "text" / f"{name}-{characters}"
    folder.mkdir(parents=True, exist_ok=True)
    kept, size = [], 0
    for line in file.read_text(encoding="utf-8").strip("\n").split("\n"):
        if size >= characters:
            break
        kept.append(line)
        size += len(json.loads(line)["text"])
    (folder / "documents.jsonl").write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return folder


def learned(text: Path, base: Path, budget: str, out: Path) -> dict[str, Any]:
    """What one run of the command reports."""
    command = [sys.executable, "-m", "memdec_edge", "learn", text, "-m", base, "--out", out, "--yes", "--json"]
    subprocess.run(
        [*map(str, command), *(["--budget", budget] if budget else [])], check=True, stdout=subprocess.DEVNULL
    )
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, default=demo_base())
    parser.add_argument("--text", nargs="+", metavar="NAME=FILE", required=True)
    parser.add_argument("--budgets", nargs="+", default=["5m", "15m", "30m"])
    parser.add_argument("--characters", type=int, default=10_000_000)
    args = parser.parse_args()
    rows = []
    for name, file in (each.split("=", 1) for each in args.text):
        text = documents(name, Path(file), args.characters, args.out)
        for budget in args.budgets:
            report = learned(text, args.base, budget, args.out / f"{name}-{args.characters}-{budget}")
            scores = {voice: each["perplexity"] for voice, each in report["perplexity"].items()}
            stages = {stage["name"]: [stage["estimated_seconds"], stage["seconds"]] for stage in report["stages"]}
            rows.append(
                {
                    "text": name,
                    "budget": budget,
                    "characters": sum(each["chars"] for each in report["documents"]["files"]),
                    "tokens": report["plan"]["tokens"],
                    "passes": report["plan"]["epochs"],
                    "planned": report["estimated_seconds"],
                    "seconds": report["seconds"],
                    "stages": stages,
                    "type": report["models"]["memory"]["type"],
                    "perplexity": scores,
                }
            )
    print(made_by(), end="")
    print(f"{'':24}{'tokens':>9}{'passes':>8}{'planned':>9}{'took':>8}{'ratio':>7}"
          f"{'base':>8}{'auto':>8}{'index':>8}{'both':>8}  type")  # fmt: skip
    for row in rows:
        took = row["seconds"]
        ratio = f"{took / row['planned']:7.2f}" if took else "      -"
        figures = "".join(f"{row['perplexity'][voice]:8.2f}" for voice in ("base", "auto", "index", "both"))
        print(f"{row['text'] + ' ' + row['budget']:24}{row['tokens']:9,}{row['passes']:8.2f}{row['planned']:9.0f}"
              f"{took or 0:8.0f}{ratio}{figures}  {row['type']}")  # fmt: skip
        for stage, (planned, seconds) in row["stages"].items():
            print(f"    {stage:12}{planned or 0:8.1f}{seconds or 0:8.1f}")
    print(json.dumps({"benchmark": "learning", "rows": rows}))


if __name__ == "__main__":
    main()
