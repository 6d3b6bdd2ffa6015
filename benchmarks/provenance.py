"""What a result says of how it was made, and what a training's metrics say of its cost. Knows no benchmark."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def made_by() -> str:
    """Command and commit of this run, as the comment that a result's file begins with."""
    return f"# {' '.join(['python', *sys.argv])}\n# commit {commit()}\n"


def commit() -> str:
    """The commit of this folder; where benchmarks/travel.py brought it, the one that it came from."""
    if (kept := Path(__file__).with_name("COMMIT")).is_file():
        return kept.read_text(encoding="utf-8").strip()
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    return found.strip() or "unknown"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with the same keys as a CSV that says how it was made."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(made_by())
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's metrics.jsonl, one a step."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
