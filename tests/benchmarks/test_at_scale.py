"""benchmarks/at_scale.py on a tiny model: every kind of cell, a card that is too small for the batch, a second run."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memdec_edge.train import write_ids
from tests.support.training import make_room

AT_SCALE = Path(__file__).resolve().parents[2] / "benchmarks" / "at_scale.py"
# A card that holds no step of more than two blocks.
SMALL_CARD = """
import runpy, sys, torch
from memdec_edge.train import step
gradients = step.Learner.gradients
def short(self, number):
    if self.options.cache.batch > 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return gradients(self, number)
step.Learner.gradients = short
"""


def run(folder: Path, before: str = "") -> "subprocess.CompletedProcess[str]":
    flags = {
        "teacher": folder / "teacher",
        "ids": folder / "ids",
        "out": folder / "out",
        "block": 16,
        "k": 8,
        "batch": 4,
    }
    flags |= {"epochs": 1, "teacher-epochs": 1, "seeds": 0, "corpora": "licences"}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    script = f"import runpy, sys\nsys.argv[0] = {str(AT_SCALE)!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    script = f"import sys\nsys.path.insert(0, {str(AT_SCALE.parent)!r})\n{before}\n{script}"
    command = [sys.executable, "-c", script, *words]
    return subprocess.run([*command, "--sizes", "600", "300"], capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_room(tmp_path_factory.mktemp("scale"))
    train, valid = (np.load(folder / "cache" / "tokens" / f"{split}.npy") for split in ("train", "valid"))
    for name, ids in (("train", train), ("valid", valid), ("test", valid[::-1])):
        write_ids(folder / "ids" / "licences" / f"{name}.npy", ids, folder / "teacher")
    write_ids(folder / "ids" / "general" / "test.npy", valid, folder / "teacher")
    return folder


def test_every_cell_has_its_line_and_too_large_a_batch_is_halved(folder: Path) -> None:
    done = run(folder, SMALL_CARD)
    assert done.returncode == 0, done.stderr
    assert "`batch` 2 with `accumulate` 2 goes on with it" in done.stderr
    lines = (folder / "out" / "at_scale.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    ways = ["600-0-control", "600-0-memory", "300-0-control", "300-0-memory", "300-0-knn", "300-0-ngram"]
    assert [row["cell"] for row in rows] == [f"licences-{way}" for way in ways]
    assert {(row["tokens"], row["steps"], row["batch"]) for row in rows} == {("600", "10", "2"), ("300", "5", "2")}
    assert [bool(float(row["gain"] or 0)) for row in rows] == [row["way"] != "control" for row in rows]
    assert [bool(row["search_qps"]) for row in rows] == [row["way"] in ("memory", "knn") for row in rows]
    for row in rows:
        assert float(row["fixed"]) <= 1.001 * max(float(row["base"]), float(row["alone"]))
        assert float(row["memory_and_index"]) > 1
    assert json.loads(done.stdout.splitlines()[-1])["cells"][1][0] == "licences-600-0-memory"


def test_a_second_run_trains_nothing_that_is_done(folder: Path) -> None:
    path = folder / "out" / "at_scale.csv"
    kept = [line for line in path.read_text().splitlines(keepends=True) if "ngram" not in line]
    path.write_text("".join(kept))  # as if the run had been cut before its last line
    weights = {file: file.stat().st_mtime_ns for file in (folder / "out").rglob("model.safetensors")}
    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:-1]] == ["licences-300-0-ngram"]
    assert {file: file.stat().st_mtime_ns for file in (folder / "out").rglob("model.safetensors")} == weights
    assert (folder / "out" / "at_scale.png").exists()
