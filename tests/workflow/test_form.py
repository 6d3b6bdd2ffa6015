"""learn --form: a part of the text in the base's chat template, told in the plan and measured on held-out answers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.gguf import metadata
from tests.support.chatty import chatty
from tests.support.command import error_of, last_json, memdec
from tests.support.tiny import tiny_checkpoint, tiny_gguf
from tests.support.training import words


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents with titles, and a base with and without a chat template."""
    room = tmp_path_factory.mktemp("form")
    plain = tiny_gguf(room / "plain.gguf", tiny_checkpoint(room / "model", n_ctx=512))
    chatty(plain, room / "base.gguf")
    rows = [{"title": text[:12], "text": f"{text[:12]}\n{text}"} for text in words(160, 5)]
    (room / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return room


def learn(room: Path, base: str, out: Path, *more: object) -> Any:
    arguments = ("-m", room / base, "--out", out, "--domain", "it", "--yes", "--json", *more)
    return memdec("learn", room / "notes.jsonl", *arguments)


def report_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def test_chat_is_told_learned_and_measured(room: Path, tmp_path: Path) -> None:
    done = learn(room, "base.gguf", tmp_path / "out", "--form", "chat")
    found = last_json(done)
    told = "text, and up to 25 % of it as questions and answers in the base's chat template; dialogues always"
    assert f"\nform       {told}\n" in done.stderr
    assert " chats in the template of base.gguf, of which answers are learned\n" in done.stderr
    report = report_of(tmp_path / "out")
    answers = report["answers"]
    assert answers["tokens"] > 100
    assert answers["memory"]["perplexity"] < 0.95 * answers["base"]["perplexity"]
    assert f"held-out answers in the base's chat template ({answers['tokens']:,} tokens): base " in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Perplexity of held-out answers in the chat template" in page
    facts = metadata.MemoryMetadata.from_gguf(found["memory_file"], metadata.read(Path(found["memory_file"]))[0])
    assert facts.train is not None
    assert float(facts.train["chat_share"]) == 0.25
    tokens = report["plan"]["tokens"]
    cache = json.loads((tmp_path / "out" / "memory" / "cache" / "manifest.json").read_text())
    assert tokens == pytest.approx(cache["facts"]["tokens"]["train"], rel=0.02)  # with the template's text
    assert last_json(learn(room, "base.gguf", tmp_path / "out")) == found  # auto goes on in the form of the folder
    again = ("-m", room / "base.gguf", "--out", tmp_path / "out", "--domain", "it", "--yes", "--form", "text")
    told = error_of("learn", room / "notes.jsonl", *again)
    assert told == f"{tmp_path / 'out'}: made with other form (chat, now text); use another output folder"
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"title": text[:9], "text": text}) + "\n" for text in words(60, 6)))
    last_json(memdec("learn", "--add", more, "--out", tmp_path / "out", "--yes", "--json"))
    assert report_of(tmp_path / "out" / "added-1")["plan"]["chat_share"] == 0.25


def test_a_base_without_a_template_learns_text_and_refuses_chat(room: Path, tmp_path: Path) -> None:
    base = room / "plain.gguf"
    told = error_of("learn", room / "notes.jsonl", "-m", base, "--out", tmp_path / "out", "--form", "chat", code=2)
    assert told == f"--form is chat: {base}: it has no chat template; give text or auto"
    assert not (tmp_path / "out").exists()
    done = learn(room, "plain.gguf", tmp_path / "out")
    last_json(done)
    assert "\nform       text\n" in done.stderr
    report = report_of(tmp_path / "out")
    assert (report["answers"], report["plan"]["chat_share"]) == (None, None)
    assert not (tmp_path / "out" / "memory" / "cache" / "tokens" / "counted.npy").exists()


def test_a_folder_of_an_earlier_version_goes_on_as_text(room: Path, tmp_path: Path) -> None:
    done = last_json(learn(room, "base.gguf", tmp_path / "out", "--form", "text"))
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    del plan["made_from"]["form"], plan["plan"]["plan"]["chat_share"]
    shutil.copytree(tmp_path / "out", tmp_path / "old")
    for name in ("report.json", "memdec-it.gguf"):
        (tmp_path / "old" / name).unlink()
    plan["stages"] = {name: plan["stages"][name] for name in ("index", "training")}
    (tmp_path / "old" / "plan.json").write_text(json.dumps(plan))
    again = last_json(learn(room, "base.gguf", tmp_path / "old"))
    assert Path(again["memory_file"]).read_bytes() == Path(done["memory_file"]).read_bytes()
