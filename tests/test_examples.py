"""The recipes of examples/, run as a user would run them, on a tiny teacher and a little text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import tiny_checkpoint, tiny_gguf
from tests.support.training import make_room

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ("--finetune-teacher", "0.1", "--steps", "2", "--block", "16", "--batch", "2", "--k", "6")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = make_room(tmp_path_factory.mktemp("examples"))
    tiny_gguf(room / "base.gguf", tiny_checkpoint(room / "teacher", n_ctx=1024))  # eval's window
    return room


@pytest.mark.parametrize(
    ("script", "teacher"), [("laptop-cpu", "base.gguf"), ("one-gpu", "teacher"), ("several-gpus", "teacher")]
)
def test_a_recipe_ends_with_a_memory(room: Path, tmp_path: Path, script: str, teacher: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command: list[str | Path] = [
        EXAMPLES / f"{script}.sh",
        room / teacher,
        room / "corpus",
        tmp_path / "memory",
        *SMALL,
    ]
    environment = os.environ | {"PATH": path, "GPUS": "1", "OMP_NUM_THREADS": "1"}
    outputs = []
    for _ in range(2 if script == "laptop-cpu" else 1):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.replace("\n\n", "\n"))
    assert f"checkpoint {tmp_path / 'memory'}" in done.stdout
    assert outputs[0].splitlines()[-1] == outputs[-1].splitlines()[-1]  # run again, it goes on
    assert (tmp_path / "memory" / "memdec-memory.gguf").stat().st_size > 10_000
    assert ("mixture" in done.stdout) == (script == "laptop-cpu")


def test_every_recipe_is_listed_in_the_readme_of_the_examples() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"]({path.name})" in text for path in EXAMPLES.glob("*.sh"))
