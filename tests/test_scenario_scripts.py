"""examples/scenarios/family.sh and wikitext.sh, run as a user runs them, on tiny models and a little text."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine
from memdec_edge.evaluation.perplexity import evaluate
from memdec_edge.options import EvalOptions, MemoryOptions
from tests.conftest import Family
from tests.support.hf import hf_checkpoint
from tests.support.plain import FOUR
from tests.support.tiny import tiny_checkpoint, tiny_gguf, to_gguf
from tests.support.training import words

SCENARIOS = Path(__file__).parents[1] / "examples" / "scenarios"
WINDOW = 32


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three splits."""
    folder = tmp_path_factory.mktemp("text")
    for split, count in (("train", 24), ("valid", 8), ("test", 9)):
        lines = (json.dumps({"text": each}) + "\n" for each in words(count, len(split)))
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def script(name: str, *arguments: object, environment: Mapping[str, object]) -> dict[str, Any]:
    """Run a script of examples/scenarios, and return the JSON object of its last line."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {key: str(value) for key, value in environment.items()}
    done = subprocess.run(
        [str(SCENARIOS / name), *map(str, arguments)], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | given,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_one_memory_is_held_against_every_base(family: Family, text: Path, tmp_path: Path) -> None:
    other = tiny_gguf(tmp_path / "other.gguf", tiny_checkpoint(tmp_path / "other", seed=9, tied=False))
    valid, test, out = text / "valid.jsonl", text / "test.jsonl", tmp_path / "out"
    environment = {"TOKENS": 256, "WINDOW": WINDOW, "GENERAL": valid}
    found = script("family.sh", out, family.memory, valid, test, family.base, other, environment=environment)
    assert json.loads((out / "family.json").read_text()) == found
    options = EvalOptions(window=WINDOW, stride=WINDOW // 2, max_tokens=256)
    first = found["bases"][0]["lambda"]
    for base, path in zip(found["bases"], (family.base, other), strict=True):
        assert [row["text"] for row in base["rows"]] == ["test", "general"]
        row = base["rows"][0]
        with closing(Engine(path, [MemoryOptions(family.memory, first)], FOUR)) as engine:
            truth = evaluate(engine, read_documents(test), options)
        assert row["base"]["perplexity"] == pytest.approx(
            truth.base.perplexity, rel=0.02
        )  # other batches, other rounding
        assert row["first"]["perplexity"] == pytest.approx(truth.mixture.perplexity, rel=0.02)
        assert row["transfer"]["percent"] == pytest.approx(
            100 * (row["first"]["perplexity"] / row["own"]["perplexity"] - 1), abs=1e-6
        )
    assert found["bases"][0]["rows"][0]["transfer"]["percent"] == 0


def test_tasks_follow_with_the_lambdas_that_were_found(family: Family, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra [eval]")
    rows = [{"text": each[:60], "choices": ["heart", "river"], "answer": at % 2} for at, each in enumerate(words(6, 1))]
    for split in ("train", "test"):
        (tmp_path / f"recall.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = (SCENARIOS / "standins" / "recall.yaml").read_text().replace("FOLDER", str(tmp_path)).partition("\n")[2]
    (tmp_path / "recall.yaml").write_text(task)
    environment = {"TOKENS": 128, "WINDOW": WINDOW, "TASKS": "recall", "INCLUDE": tmp_path, "LIMIT": 4}
    valid, test, out = text / "valid.jsonl", text / "test.jsonl", tmp_path / "out"
    found = script("family.sh", out, family.memory, valid, test, family.base, environment=environment)
    value = json.loads((out / "family.json").read_text())["bases"][0]["lambda"]
    assert found["systems"]["own"].endswith(f"lam={value}")
    assert {row["task"] for row in found["rows"]} == {"recall"}
    assert (out / "tasks-0.txt").is_file()


def test_the_papers_table_comes_out_of_one_command(text: Path, tmp_path: Path) -> None:
    models = [
        hf_checkpoint(tmp_path / f"gpt2-{name}", "GPT2", hidden_size=size) for name, size in (("a", 32), ("b", 64))
    ]
    environment = {"TEXT": text, "MODELS": f"{models[0]} {models[1]}", "TEACHER": models[1], "INIT": models[0]}
    small = ("--epochs", 1, "--dapt-epochs", 1, "--lr", 1e-3, "--dapt-lr", 1e-3, "--k", 8, "--batch", 4)
    found = script("wikitext.sh", tmp_path / "out", *small, "--window", WINDOW, environment=environment)
    assert set(found["rows"]) == {"base", "DAPT", "kNN-LM", "control", "memory"}
    for row in found["rows"].values():
        assert set(row) == {"gpt2-a", "gpt2-b"}
    gguf = to_gguf(models[1], tmp_path / "b.gguf", role="model").outfile
    with closing(Engine(gguf, [], FOUR)) as engine:
        truth = evaluate(engine, read_documents(text / "test.jsonl"), EvalOptions(window=WINDOW, stride=WINDOW // 2))
    rows = {way: row["gpt2-b"] for way, row in found["rows"].items()}
    assert rows["base"]["perplexity"] == pytest.approx(truth.base.perplexity, rel=0.02)
    assert rows["DAPT"]["perplexity"] < 0.9 * rows["base"]["perplexity"]  # it has learned
    for way in ("kNN-LM", "control", "memory"):
        assert rows[way]["perplexity"] < rows["base"]["perplexity"]
        assert 0 < rows[way]["lambda"] <= 1


def test_articles_of_wikitext_begin_at_titles_and_not_at_sections(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    lines = ["", " = One = \n", "", " Text . \n", " = = Section = = \n", " More . \n", " = Two = \n", " Text . \n"]
    (tmp_path / "raw").mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        table = pyarrow.table({"text": lines[: 4 + 2 * number]})
        pyarrow.parquet.write_table(table, tmp_path / "raw" / f"{split}-00000-of-00001.parquet")
    prepare = runpy.run_path(str(SCENARIOS / "wikitext.py"))["prepare"]
    prepare(tmp_path / "raw", tmp_path / "text")
    assert read_documents(tmp_path / "text" / "train.jsonl") == [" = One = \n Text . \n"]
    found = [json.loads(line)["text"] for line in (tmp_path / "text" / "test.jsonl").read_text().splitlines()]
    assert found == [" = One = \n Text . \n = = Section = = \n More . \n", " = Two = \n Text . \n"]
