"""The demo, for real: the quick version learns, measures and shows; a second run reuses all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.gguf import metadata


def demo(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memdec_edge", "demo", *arguments]
    environment = os.environ | {"MEMDEC_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def finished(home: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    done = demo(home, "--quick", "--json")
    assert done.returncode == 0, done.stderr
    return done, json.loads(done.stdout.splitlines()[-1])


def test_the_quick_demo_lowers_held_out_perplexity_by_10_percent(
    finished: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    done, found = finished
    assert set(found) == {
        "domain", "lambda", "perplexity", "general", "tokens_per_second", "seconds", "base_file", "memory_file",
    }  # fmt: skip
    assert set(found["perplexity"]) == {"base", "memory", "mixture", "control"}
    assert found["perplexity"]["mixture"] < 0.9 * found["perplexity"]["base"]  # 0.82, on as few tokens as this scores
    assert 0.8 < found["general"]["mixture"] / found["general"]["base"] < 1.2  # mixing may even help there
    assert min(found["tokens_per_second"].values()) > 0
    assert found["perplexity"]["control"] is None
    assert "control (same training" not in done.stdout
    assert "verbatim" in done.stderr


def test_an_index_answers_before_the_training_and_is_measured_beside_the_memory(
    finished: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    done, found = finished
    folder = Path(found["memory_file"]).parent
    assert (folder / "memdec-medicine-index.gguf").is_file()
    assert (folder / "report.html").is_file()
    assert done.stderr.index("the index answers already") < done.stderr.index("training: about")
    scores = json.loads((folder / "report.json").read_text())["perplexity"]
    assert max(scores[voice]["perplexity"] for voice in ("auto", "both")) < scores["base"]["perplexity"]
    assert scores["index"]["perplexity"] < 1.02 * scores["base"]["perplexity"]  # of 9,000 tokens it finds little
    assert scores["both"]["standard_error"] > 0


def test_the_memory_recommends_the_tuned_lambda_and_states_its_perplexities(
    finished: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    found = finished[1]
    path = Path(found["memory_file"])
    facts = metadata.MemoryMetadata.from_gguf(path, metadata.read(path)[0])
    assert facts.weight == pytest.approx(found["lambda"], rel=1e-6)
    assert facts.ppl_mixture == pytest.approx(found["perplexity"]["mixture"])
    assert facts.domain == "medicine"


def test_the_line_that_is_printed_runs(finished: tuple[subprocess.CompletedProcess[str], dict[str, Any]]) -> None:
    done, found = finished
    printed = done.stdout[done.stdout.index("memdec-edge run") : done.stdout.rindex("\n{")]
    ran = subprocess.run(
        ["bash", "-c", printed.replace("memdec-edge", f"{sys.executable} -m memdec_edge", 1)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "ended by" in ran.stderr  # the text itself may end at once: it has no seed
    path = Path(found["memory_file"])
    begins = metadata.MemoryMetadata.from_gguf(path, metadata.read(path)[0]).first_weight  # what tuning found
    assert f"at lambda auto, from {begins:.3g}" in ran.stderr


def test_a_second_run_shows_the_same_without_working(
    home: Path, finished: tuple[subprocess.CompletedProcess[str], dict[str, Any]]
) -> None:
    files = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
    again = demo(home, "--quick", "--json")
    assert again.stdout == finished[0].stdout
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()} == files


def test_an_unknown_domain_is_one_line(home: Path) -> None:
    done = demo(home, "--domain", "poetry")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: --domain is poetry: must be one of medicine, licences\n"
