"""Models by name on the command line and from Python, asked of a Hub that the test itself runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Family
from tests.support.hub import COMMIT, Hub, Repository


def memdec(
    environment: dict[str, str], *arguments: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memdec_edge", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_commands_take_a_base_by_its_name(hub: Hub, home: Path, family: Family) -> None:
    hub.repositories["user/tiny"] = Repository({"tiny-f32.gguf": family.base.read_bytes()})
    done = memdec(hub.environment(home), "check", "-hf", "user/tiny", "-M", family.memory)
    assert done.returncode == 0, done.stderr
    assert "base user/tiny is tiny-f32.gguf, revision c0ffee000000" in done.stderr
    assert "tiny-f32.gguf: 400 shared tokens" in done.stdout


def test_convert_takes_a_checkpoint_by_its_name_and_keeps_its_revision(
    hub: Hub, home: Path, family: Family, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in family.memory_checkpoint.iterdir()}
    hub.repositories["user/tiny"] = Repository(files)
    environment, out = hub.environment(home), tmp_path / "memdec-tiny.gguf"
    done = memdec(
        environment, "convert", "user/tiny", "--outfile", out, "--outtype", "f32", "--no-verify", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "user/tiny is a folder, revision c0ffee000000" in done.stderr
    shown = memdec(environment, "show", out).stdout
    assert re.search(r"general\.source\.huggingface\.repository +user/tiny\n", shown)
    assert re.search(rf"general\.source\.huggingface\.revision +{COMMIT}\n", shown)
    asked = len(hub.asked)
    again = memdec(environment, "convert", "user/tiny", "--outfile", out, cwd=tmp_path)
    assert (again.returncode, len(hub.asked)) == (1, asked)  # what would be refused is refused before a download
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    other = tmp_path / "memdec-other.gguf"
    done = memdec(offline, "convert", f"user/tiny@{COMMIT}", "--outfile", other, "--no-verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "tiny").mkdir()  # a path that exists wins
    done = memdec(environment, "convert", "user/tiny", "--outfile", tmp_path / "memdec-no.gguf", cwd=tmp_path)
    assert done.stderr.startswith("Error: user/tiny/config.json: no such file")


def test_an_index_keeps_the_revision_of_its_base(hub: Hub, home: Path, family: Family, tmp_path: Path) -> None:
    hub.repositories["user/tiny"] = Repository({"tiny-f32.gguf": family.base.read_bytes()})
    (tmp_path / "text.txt").write_text("The heart is a muscle. " * 40)
    out = tmp_path / "memdec-heart-index.gguf"
    done = memdec(hub.environment(home), "index", tmp_path / "text.txt", "-hf", "user/tiny", "--out", out)
    assert done.returncode == 0, done.stderr
    shown = memdec(hub.environment(home), "show", out).stdout
    assert re.search(r"general\.base_model\.0\.name +base\n", shown)
    assert re.search(r"general\.base_model\.0\.huggingface\.repository +user/tiny\n", shown)
    assert re.search(rf"general\.base_model\.0\.huggingface\.revision +{COMMIT}\n", shown)


def test_a_memory_by_its_name_is_used_by_commands_and_from_python(
    hub: Hub, home: Path, family: Family, tmp_path: Path
) -> None:
    hub.repositories["user/memory"] = Repository({"memdec-tiny.gguf": family.memory.read_bytes(), "tiny.gguf": b"no"})
    hub.repositories["user/base"] = Repository({"tiny.gguf": family.base.read_bytes()})
    environment, text = hub.environment(home), tmp_path / "text.txt"
    text.write_text("The heart is a muscle. " * 40)
    base = ["-hf", "user/base"]
    done = memdec(environment, "check", *base, "-M", "user/memory")
    assert done.returncode == 0, done.stderr
    run = ["run", *base, "-p", "The heart", "-n", 4, "-s", 1, "--draft", 0]
    for memory in (["-M", "user/memory"], ["--memory-scaled", "user/memory:memdec-tiny.gguf:0.4"]):
        done = memdec(environment, *run, *memory)
        assert done.returncode == 0, done.stderr
        assert "user/memory is memdec-tiny.gguf, revision c0ffee000000" in done.stderr
    tuned = ["tune", *base, "-M", "user/memory", text, "--general", text, "--window", 32, "--stride", 16]
    done = memdec(environment, *tuned)
    assert done.returncode == 2
    assert "Error: --memory is user/memory: copy it out of the Hub's cache" in done.stderr
    program = (
        "import sys; from memdec_edge import open_model\n"
        "with open_model('user/base', ['user/memory']) as model: print(model.engine.memories[0].path.name)"
    )
    python = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert python.stdout == "memdec-tiny.gguf\n", python.stderr


def test_lm_eval_takes_base_and_memory_by_their_names(hub: Hub, home: Path, family: Family) -> None:
    pytest.importorskip("lm_eval", reason="the extra [eval]")
    hub.repositories["user/memory"] = Repository({"memdec-tiny.gguf": family.memory.read_bytes()})
    hub.repositories["user/base"] = Repository({"tiny.gguf": family.base.read_bytes()})
    program = (
        "from memdec_edge.evaluation.harness import MemdecLM\n"
        "model = MemdecLM(base='user/base', memory='user/memory:memdec-tiny.gguf')\n"
        "print(model.engine.base.path.name, model.engine.memories[0].path.name); model.close()"
    )
    command, environment = [sys.executable, "-c", program], hub.environment(home)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "tiny.gguf memdec-tiny.gguf\n", done.stderr


def test_a_memory_that_no_one_has_names_path_and_hub(hub: Hub, home: Path, family: Family) -> None:
    done = memdec(hub.environment(home), "check", "-m", family.base, "-M", "user/none")
    assert done.stderr.splitlines() == [
        "no path is called user/none; the Hub is asked for a model of that name",
        "Error: user/none: no such model on the Hugging Face Hub; check the name; a private one needs HF_TOKEN",
    ]


def test_adapt_takes_a_memory_by_its_name(hub: Hub, home: Path, family: Family, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in family.memory_checkpoint.iterdir()}
    hub.repositories["user/tiny"] = Repository(files)
    (tmp_path / "text.txt").write_text("The heart is a muscle. " * 40)
    options = ("--to", family.base_checkpoint, "--corpus", tmp_path / "text.txt", "--out", tmp_path / "adapted")
    done = memdec(hub.environment(home), "adapt", "user/tiny", *options)
    assert "user/tiny is a folder, revision c0ffee000000" in done.stderr
    assert f"{COMMIT}/memdec.json: does not say how many tokens the memory learned from" in done.stderr
