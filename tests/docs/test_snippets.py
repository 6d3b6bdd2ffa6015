"""Every snippet of the documents runs, on tiny models with the names that the documents use.

A page runs from top to bottom in a folder of its own, which holds what its snippets name and do not make themselves. A
snippet that would need a network, a GPU or the real demo has a comment above it that says so (tests/docs/pages.py).
Commands run in this process, for PyTorch is then imported once.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from memdec_edge.cli import main
from tests.docs.pages import PAGES, Fence, fences
from tests.support.tiny import OTHER_TEXT, TEXT, tiny_checkpoint, tiny_gguf, tiny_lora
from tests.support.training import words

CONTEXT = 1024  # tokens: eval's window
LAYERS = 16  # one more than the documents keep of SmolLM2-135M
RUNNABLE = {page: [fence for fence in fences(page, "sh", "python") if not fence.not_run] for page in PAGES}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents name: models, checkpoints, texts."""
    room = tmp_path_factory.mktemp("room")
    tiny_checkpoint(room / "SmolLM2-135M", layers=LAYERS, hidden=32, n_ctx=CONTEXT)
    tiny_checkpoint(room / "teacher", n_ctx=CONTEXT)
    tiny_checkpoint(room / "checkpoint", n_ctx=CONTEXT, seed=2)
    tiny_lora(room / "lora", room / "checkpoint")
    tiny_checkpoint(room / "stranger", text=OTHER_TEXT)
    base = tiny_gguf(room / "base.gguf", room / "teacher")
    shutil.copyfile(base, room / "teacher.gguf")
    for domain in ("medicine", "law"):
        tiny_gguf(room / f"memdec-{domain}.gguf", room / "checkpoint", role="memory", base=base)
    tiny_gguf(room / "memdec-stranger.gguf", room / "stranger", role="memory")
    (room / "prompt.txt").write_text("Anaemia is\n")
    (room / "corpus").mkdir()
    for split, count in (("train", 40), ("valid", 14), ("test", 24)):
        lines = (json.dumps({"text": text}) + "\n" for text in words(count, len(split)))
        (room / "corpus" / f"{split}.jsonl").write_text("".join(lines))
    (room / "notes").mkdir()
    for number in range(8):
        (room / "notes" / f"{number}.md").write_text("\n\n".join([TEXT, *words(12, number)]))
    return room


def made(fence: Fence) -> Iterator[str]:
    """The top names that the commands of a fence make."""
    for command in fence.commands() if fence.language == "sh" else ():
        where = {"quantize": command[3:4]}.get(command[1], [])
        where += [after for flag, after in pairwise(command) if flag in ("--out", "--outfile")]
        yield from (name.split("/")[0] for name in where)


@pytest.mark.parametrize("page", [page for page in PAGES if RUNNABLE[page]], ids=lambda page: page.name)
def test_snippets_run(
    page: Path, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    own = {name for fence in RUNNABLE[page] for name in made(fence)}
    folder = tmp_path / "folder"
    shutil.copytree(room, folder, ignore=lambda where, names: own & set(names) if Path(where) == room else set())
    monkeypatch.chdir(folder)
    for fence in RUNNABLE[page]:
        if fence.language == "python":
            exec(compile("\n" * fence.line + fence.text, page, "exec"), {"__name__": "__main__"})
            continue
        for command in fence.commands():
            assert command[0] == "memdec-edge", f"{fence}: only memdec-edge runs here; say why not in a comment above"
            monkeypatch.setattr(sys, "argv", command)
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code, f"{fence}: {command}: {capfd.readouterr().err}"


def test_snippets_that_do_not_run_say_why_in_a_few_words() -> None:
    left_out = [fence for page in PAGES for fence in fences(page, "sh", "python") if fence.not_run]
    assert left_out
    assert all(3 <= len(fence.not_run.split()) <= 20 for fence in left_out)
