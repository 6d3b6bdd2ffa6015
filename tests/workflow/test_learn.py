"""memdec-edge learn on a tiny model: everything in one folder, the figures those of eval, kills and additions."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.documents import GENERAL
from memdec_edge.gguf import metadata
from memdec_edge.gguf.index_file import IndexFile
from memdec_edge.options import LearnOptions
from memdec_edge.workflow import demo
from memdec_edge.workflow import learn as learning
from tests.support.command import error_of, last_json, memdec
from tests.support.terminal import terminal
from tests.support.tiny import TEXT, tiny_checkpoint, tiny_gguf
from tests.support.training import words

WINDOW = ("--window", 512, "--stride", 256)  # of a base that sees 512 tokens
VOICES = ("base", "memory", "mixture", "auto", "index", "both")


@dataclass(frozen=True)
class Learned:
    """A folder that learn made, what it was made from, and what was printed."""

    base: Path
    documents: Path
    out: Path
    stderr: str
    json: dict[str, Any]
    report: dict[str, Any]


def learn(documents: Path, base: Path, out: Path, *more: object) -> Any:
    return memdec("learn", documents, "-m", base, "--out", out, "--domain", "the heart", "--yes", "--json", *more)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and documents that are alike enough to be learned."""
    room = tmp_path_factory.mktemp("learn")
    base = tiny_gguf(room / "base.gguf", tiny_checkpoint(room / "model", n_ctx=512))
    assert base.is_file()
    (room / "notes" / "deep").mkdir(parents=True)
    for number in range(12):
        name = os.fsdecode(b"caf\xe9.md") if number == 11 else f"{number}.md"  # Linux takes any bytes
        (room / "notes" / name).write_text("\n\n".join(words(20, number)))
    (room / "notes" / "deep" / "more.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in words(60, 99))
    )
    (room / "notes" / "logo.png").write_bytes(b"\x89PNG")
    return room


@pytest.fixture(scope="module")
def learned(room: Path) -> Learned:
    done = learn(room / "notes", room / "base.gguf", room / "out")
    found = last_json(done)
    report = json.loads((room / "out" / "report.json").read_text())
    return Learned(room / "base.gguf", room / "notes", room / "out", done.stderr, found, report)


def test_everything_is_in_one_folder(learned: Learned) -> None:
    names = {path.name for path in learned.out.iterdir() if not path.name.startswith(".")}
    files = {"memdec-the-heart.gguf", "memdec-the-heart-index.gguf", "report.html", "report.json", "plan.json"}
    assert names - {"README.md"} == {"corpus", "memory", *files}
    assert {path.name for path in (learned.out / "corpus").iterdir()} == {"train.jsonl", "valid.jsonl", "test.jsonl"}
    assert not [path for path in learned.out.rglob(".*") if path.name != ".gitignore"]  # nothing half-written


def test_the_json_says_where_everything_is_and_what_it_is_worth(learned: Learned) -> None:
    found = learned.json
    assert set(found) == {
        "out", "memory_file", "index_file", "report", "tokens", "seconds", "estimated_seconds", "perplexity", "general",
    }  # fmt: skip
    assert tuple(found["perplexity"]) == VOICES
    assert set(found["general"]) == {"base", "auto"}
    assert all(Path(found[key]).is_file() for key in ("memory_file", "index_file", "report"))
    assert found["perplexity"]["auto"] < 0.9 * found["perplexity"]["base"]
    assert found["seconds"] > 0
    assert found["estimated_seconds"] > 0


def test_the_plan_and_the_index_are_told_before_the_training(learned: Learned) -> None:
    lines = learned.stderr.splitlines()
    starts = ("machine ", "documents ", "tokens ", "plan ", "memory ", "needs ", "time ", "the index answers already: ")
    told = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in starts]
    assert told == sorted(told)
    assert told[-1] < next(i for i, line in enumerate(lines) if line.startswith("training: about"))
    assert "plain training (beta 0), 2 passes over all of them" in learned.stderr


def test_the_report_tells_documents_stages_types_and_curves(learned: Learned) -> None:
    report = learned.report
    documents = report["documents"]
    assert documents["documents"] == sum(file["documents"] for file in documents["files"])
    assert {file["kind"] for file in documents["files"]} == {".md", ".jsonl"}
    assert [Path(file["path"]).name for file in documents["left_out"]] == ["logo.png"]
    assert [stage["name"] for stage in report["stages"]] == [
        "planning", "index", "training", "file", "tuning", "measuring", "continuing",
    ]  # fmt: skip
    assert all(stage["seconds"] is not None for stage in report["stages"])
    assert len(report["curves"]["valid"]) >= 2
    assert report["curves"]["train"][-1][0] > report["curves"]["train"][0][0]
    assert report["speed"]["base"] > 0
    assert len(report["continuations"]) > 0
    assert (learned.out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_base_without_a_chat_template_learns_text_alone(learned: Learned) -> None:
    assert "\nform       text\n" in learned.stderr
    assert (learned.report["answers"], learned.report["plan"]["chat_share"]) == (None, None)
    assert not (learned.out / "memory" / "cache" / "tokens" / "counted.npy").exists()
    assert "form" not in json.loads((learned.out / "plan.json").read_text())["made_from"]


def test_the_type_is_the_smallest_within_one_percent_of_the_first(learned: Learned) -> None:
    types, memory = learned.report["types"], learned.report["models"]["memory"]
    assert [row["type"] for row in types] == ["q8_0", "q6_k", "q5_k_m", "q4_k_m"]
    within = [row for row in types if row["perplexity"] <= 1.01 * types[0]["perplexity"]]
    smallest = min(within, key=lambda row: row["bytes"])
    assert (memory["type"], memory["bytes"]) == (smallest["type"], smallest["bytes"])
    assert memory["bytes"] == Path(memory["file"]).stat().st_size


def test_the_figures_are_those_of_eval(learned: Learned) -> None:
    test, memory = learned.out / "corpus" / "test.jsonl", learned.json["memory_file"]
    most = 2 * learned.report["plan"]["scored"]
    arguments = ("-m", learned.base, "-M", memory, test, *WINDOW, "--max-tokens", most, "--json")
    scored = last_json(memdec("eval", *arguments))
    mine = learned.report["perplexity"]
    assert scored["tokens"] == learned.report["tokens_scored"]
    for voice in ("base", "memory", "mixture", "auto"):
        assert mine[voice]["perplexity"] == pytest.approx(scored["perplexity"][voice], rel=1e-6)
    general = last_json(memdec("eval", "-m", learned.base, "-M", memory, GENERAL, *WINDOW, "--json"))
    assert learned.json["general"]["auto"] == pytest.approx(general["perplexity"]["auto"], rel=1e-6)
    facts = metadata.MemoryMetadata.from_gguf(memory, metadata.read(memory)[0])
    assert facts.ppl_mixture == pytest.approx(mine["mixture"]["perplexity"], rel=1e-6)
    assert facts.domain == "the heart"


def test_the_index_holds_every_document_but_was_measured_without_held_out_ones(learned: Learned) -> None:
    with closing(IndexFile.open(Path(learned.json["index_file"]))) as index:
        assert index.n_documents == 12 + 60
    test = learned.out / "corpus" / "test.jsonl"
    done = memdec("eval", "-m", learned.base, "-M", learned.json["index_file"], test, *WINDOW, "--json")
    assert "holds" in done.stderr  # eval warns: the index has seen the text
    seen = last_json(done)["perplexity"]["auto"]
    assert seen < 0.7 * learned.json["perplexity"]["index"]


def test_a_second_run_shows_the_same_without_working(learned: Learned) -> None:
    files = {path: path.stat().st_mtime_ns for path in learned.out.rglob("*") if path.is_file()}
    again = learn(learned.documents, learned.base, learned.out)
    assert last_json(again) == learned.json
    assert {path: path.stat().st_mtime_ns for path in learned.out.rglob("*") if path.is_file()} == files


def test_other_documents_and_another_budget_are_refused_by_name(learned: Learned, tmp_path: Path) -> None:
    shutil.copytree(learned.documents, tmp_path / "notes")
    (tmp_path / "notes" / "new.md").write_text(TEXT)
    arguments = ("-m", learned.base, "--out", learned.out, "--domain", "the heart", "--yes")
    told = error_of("learn", tmp_path / "notes", *arguments)
    assert told == f"{learned.out}: made with other documents; give the new documents by --add"
    told = error_of("learn", learned.documents, *arguments, "--budget", "9m")
    assert told == f"{learned.out}: made with other budget (, now 9m); use another output folder"


def test_a_person_is_asked_once_the_plan_is_told(room: Path, tmp_path: Path) -> None:
    with terminal("learn", room / "notes", "-m", room / "base.gguf", "--out", tmp_path / "out") as screen:
        screen.wait_for("begin? [y/N]", 120)
        screen.press("n\n")
        screen.wait_for("Error: stopped; nothing was written")
        assert screen.ends() == 130
    assert "together" in screen.text
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys, time
from pathlib import Path
from memdec_edge.cli import main
from memdec_edge.workflow import learn, measure, stages
documents, base, out = map(Path, sys.argv[1:])
arguments = ["learn", documents, "-m", base, "--out", out, "--domain", "the heart", "--yes"]
def live(until):
    child = os.fork()
    if child == 0:
        main([str(argument) for argument in arguments])
    while until and os.waitpid(child, os.WNOHANG) == (0, 0):
        if until():
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.002)
    return os.waitpid(child, 0)[1] if not until or until() else 0
def text():
    path = out / "plan.json"
    return path.read_text() if path.exists() else ""
moments = {
    "index": lambda: '"index": {' in text(),
    "training": lambda: (out / "memory" / "metrics.jsonl").exists(),
    "file": lambda: (out / ".unfinished").exists(),
    "tuning": lambda: '"tuning": {' in text(),
    "measuring": lambda: '"measuring": {' in text(),
}
statuses = {name: live(until) for name, until in moments.items()}
assert set(statuses.values()) == {signal.SIGKILL}, statuses
assert live(None) == 0
"""


def test_a_run_that_is_killed_in_every_stage_ends_with_the_same_memory(learned: Learned, tmp_path: Path) -> None:
    out = tmp_path / "out"  # by the same plan: another measurement of the machine might score more tokens
    shutil.copytree(learned.out / "corpus", out / "corpus")
    plan = json.loads((learned.out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps(plan | {"stages": {}}))
    command = [sys.executable, "-c", KILLED, *map(str, (learned.documents, learned.base, out))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    name = "memdec-the-heart.gguf"
    assert (out / name).read_bytes() == (learned.out / name).read_bytes()
    assert json.loads((out / "report.json").read_text())["seconds"] is None  # no clock ran while it was dead
    assert not [path for path in out.rglob(".*") if path.is_file()]


def test_more_documents_go_on_from_the_memory(learned: Learned, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(learned.out, out)
    (tmp_path / "more").mkdir()
    for number in range(30, 40):
        (tmp_path / "more" / f"{number}.md").write_text("\n\n".join(words(12, number)))
    before = (out / "memdec-the-heart.gguf").read_bytes()
    killed = out / "added-1" / ".index-before.gguf"  # of a run that had added to the index already
    killed.parent.mkdir()
    (out / "memdec-the-heart-index.gguf").replace(killed)
    found = last_json(memdec("learn", "--add", tmp_path / "more", "--out", out, "--yes", "--json"))
    second = out / "added-1"
    assert Path(found["report"]) == second / "report.html"
    assert (out / "report.json").read_bytes() == (learned.out / "report.json").read_bytes()  # the old one stays beside
    assert Path(found["memory_file"]).read_bytes() != before
    rows = [json.loads(line) for line in (second / "corpus" / "train.jsonl").read_text().splitlines()]
    sources = {str(Path(row["source"]).parent) for row in rows}
    assert sources == {str(tmp_path / "more"), str(out / "corpus")}  # new text, and old text again
    held_out = (out / "corpus" / "test.jsonl").read_text().splitlines()
    kept = [json.loads(line)["text"] for line in (second / "corpus" / "test.jsonl").read_text().splitlines()]
    assert {json.loads(line)["text"] for line in held_out} <= set(kept)
    with closing(IndexFile.open(Path(found["index_file"]))) as index:
        assert index.n_documents == 72 + 10
    assert not killed.exists()
    again = memdec("learn", "--add", tmp_path / "more", "--out", out, "--yes", "--json")
    assert last_json(again) == found  # the same documents are added once
    assert not (out / "added-2").exists()


def test_a_control_is_trained_as_the_memory_was_but_for_the_retriever(room: Path, tmp_path: Path) -> None:
    """What demo --control does, on a corpus that names its splits and stands in the output folder already."""
    corpus = tmp_path / "out" / "corpus"
    corpus.mkdir(parents=True)
    for seed, (split, count) in enumerate((("train", 40), ("valid", 30), ("test", 20))):
        lines = (json.dumps({"text": text}) + "\n" for text in words(count, seed))
        (corpus / f"{split}.jsonl").write_text("".join(lines))
    options = LearnOptions(corpus, room / "base.gguf", tmp_path / "out", domain="law", retriever=True)
    found = learning.learn(options, prompts=["The licence", "You may"])
    assert (found["plan"]["beta"], found["plan"]["teacher_epochs"]) == (0.5, 2)
    assert [text["prompt"] for text in found["continuations"]] == ["The licence", "You may"]
    with closing(IndexFile.open(Path(found["models"]["index"]["file"]))) as index:
        assert index.n_documents == 40  # held-out documents that are named so are in no index
    control = demo.measured_control(options, found)
    assert 1 < control["perplexity"] < 1.05 * found["perplexity"]["base"]["perplexity"]
    made = {path.name for path in (tmp_path / "out").glob("*.gguf")}
    assert made == {"memdec-law.gguf", "memdec-law-index.gguf", "memdec-law-control.gguf"}
    path = tmp_path / "out" / "memdec-law-control.gguf"
    facts = metadata.MemoryMetadata.from_gguf(path, metadata.read(path)[0])
    assert facts.train is not None
    assert facts.train["beta"] == "0.0"
    assert demo.measured_control(options, found) == control  # kept


def test_what_cannot_be_learned_is_one_line_and_leaves_nothing(room: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "scan.png").write_bytes(b"\x89PNG")
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.txt").write_text("Too short.")
    base, out = room / "base.gguf", tmp_path / "out"
    for name, told in (("empty", "no text in it"), ("pictures", "there are only pictures"), ("none", "no such")):
        assert told in error_of("learn", tmp_path / name, "-m", base, "--out", out, "--yes")
    done = memdec("learn", tmp_path / "short", "-m", base, "--out", out, "--yes")
    assert done.returncode == 1
    assert "training tokens are too few to learn from; give more text" in done.stderr.splitlines()[-1]
    done = memdec("learn", room / "notes", "-m", base, "--out", out, "--yes", "--budget", "1s")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: --budget is 1s: too short for anything: ")
    assert not out.exists()
    told = error_of("learn", "--add", room / "notes", "--out", tmp_path / "empty")
    assert told.startswith(f"{tmp_path / 'empty'}: no such folder of a learned memory; make it with")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    told = error_of("learn", room / "notes", "-m", base, "--out", tmp_path / "mine", "--yes")
    assert told.startswith(f"{tmp_path / 'mine' / 'letter.txt'} exists and is not overwritten")
    told = error_of("learn", room / "notes", "-m", base, "--out", room / "notes" / "out", code=2)
    assert told.startswith(f"--out is {room / 'notes' / 'out'}: must be outside")
