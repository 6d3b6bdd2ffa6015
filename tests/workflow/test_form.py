"""learn --form: a part of the text in the base's chat template, told in the plan and measured on held-out answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.errors import Cancelled
from memdec_edge.gguf import metadata
from memdec_edge.options import LearnOptions
from memdec_edge.workflow import learn as learning
from memdec_edge.workflow.plan import Plan
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


def plan_of(**options: Any) -> Plan:
    """The plan that a person is shown, who then says no."""
    found: list[Plan] = []

    def refuse(plan: Plan) -> bool:
        found.append(plan)
        return False

    with pytest.raises(Cancelled):
        learning.learn(LearnOptions(**options), refuse)
    return found[0]


def test_chat_is_told_learned_and_measured(room: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = learn(room, "base.gguf", out, "--form", "chat")
    found = last_json(done)
    told = "text, and up to 25 % of it as questions and answers in the base's chat template; dialogues always"
    assert f"\nform       {told}\n" in done.stderr
    report = report_of(out)
    answers = report["answers"]
    assert answers["tokens"] > 100
    assert answers["memory"]["perplexity"] < 0.95 * answers["base"]["perplexity"]
    assert f"held-out answers in the base's chat template ({answers['tokens']:,} tokens): base " in done.stdout
    assert "Perplexity of held-out answers in the chat template" in (out / "report.html").read_text()
    facts = metadata.MemoryMetadata.from_gguf(found["memory_file"], metadata.read(Path(found["memory_file"]))[0])
    assert facts.train is not None
    assert float(facts.train["chat_share"]) == 0.25
    cache = json.loads((out / "memory" / "cache" / "manifest.json").read_text())
    assert report["plan"]["tokens"] == pytest.approx(cache["facts"]["tokens"]["train"], rel=0.02)  # template text too
    assert last_json(learn(room, "base.gguf", out)) == found  # auto goes on in the form of the folder
    again = ("-m", room / "base.gguf", "--out", out, "--domain", "it", "--yes", "--form", "text")
    told = error_of("learn", room / "notes.jsonl", *again)
    assert told == f"{out}: made with other form (chat, now none); use another output folder"
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"title": text[:9], "text": text}) + "\n" for text in words(60, 6)))
    assert plan_of(add=more, out=out).chat_share == 0.25
    plan = json.loads((out / "plan.json").read_text())
    del plan["made_from"]["form"]  # as an earlier version wrote it
    (out / "plan.json").write_text(json.dumps(plan))
    assert last_json(learn(room, "base.gguf", out)) == found


def test_a_base_without_a_template_refuses_chat(room: Path, tmp_path: Path) -> None:
    base, out = room / "plain.gguf", tmp_path / "out"
    told = error_of("learn", room / "notes.jsonl", "-m", base, "--out", out, "--form", "chat", code=2)
    assert told == f"--form is chat: {base}: it has no chat template; give text"
    assert not out.exists()
