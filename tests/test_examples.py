"""The recipes and programs of examples/, run as a user would run them, on tiny models and a little text."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import TEXT, tiny_checkpoint, tiny_gguf
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


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base and its memory, trained for as many tokens as the programs open."""
    folder = tmp_path_factory.mktemp("pair")
    base = tiny_gguf(folder / "base.gguf", tiny_checkpoint(folder / "base", n_ctx=2048))
    checkpoint = tiny_checkpoint(folder / "memory", n_ctx=2048, seed=2)
    return [str(base), str(tiny_gguf(folder / "memdec-tiny.gguf", checkpoint, role="memory", base=base))]


def run_program(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    """In this process, where its libraries are imported already; warnings are errors."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.filterwarnings("ignore:llama_token_get_attr is deprecated")  # llguidance's own call
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("outlines_json.py", {"definition", "organ", "infectious"}),
        ("instructor_extract.py", {"symptom", "since_days", "severity"}),
    ],
)
def test_a_program_prints_an_object_that_base_and_memory_wrote(
    pair: list[str], name: str, fields: set[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run_program(monkeypatch, name, *pair)
    out, err = capfd.readouterr()
    assert json.loads(out).keys() == fields
    rows = re.search(r"took part in (\d+) rows", err)
    assert rows
    assert int(rows[1]) > 10
    with pytest.raises(SystemExit, match=r"Error: .*no-memory\.gguf: no such"):
        run_program(monkeypatch, name, pair[0], "no-memory.gguf")


def test_documents_and_a_memory_act_on_one_answer(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.md").write_text(TEXT)  # paragraphs about the heart, a licence, a river; a program
    run_program(monkeypatch, "rag_and_memory.py", *pair, str(tmp_path), "Did the brother walk along the river?")
    out, err = capfd.readouterr()
    assert out.strip()
    assert [line[:30] for line in err.splitlines() if line.startswith("[")] == ["[1] It was a bright morning in"]
    weight = re.search(r"memdec-tiny\.gguf weighs (0\.\d\d) at the end", err)
    assert weight
    assert weight[1] != "0.50"  # where it began


def test_passages_that_share_no_word_with_a_question_are_left_out() -> None:
    program = runpy.run_path(str(EXAMPLES / "rag_and_memory.py"))
    passages = TEXT.split("\n\n")
    assert [program["find"](passages, text, 3) for text in ("?", "Quux?", "the")] == [[], [], []]
    assert program["find"](passages, "insulin and iron", 9) == passages[:1]


def test_every_example_is_listed_in_the_readme_of_the_examples() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"]({path.name})" in text for path in EXAMPLES.glob("*.[sp][hy]"))
