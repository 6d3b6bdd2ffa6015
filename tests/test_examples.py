"""The recipes and programs of examples/, run as a user would run them, on tiny models and a little text."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.api import open_model
from memdec_edge.gguf.index_file import tokenizer_of
from memdec_edge.workflow.demo import demo_base
from tests.support.chatty import chatty
from tests.support.command import memdec
from tests.support.indexes import index_file
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


# --- the assistants -------------------------------------------------------------------------------------------------

LEGAL, MEDICAL = "legal_assistant.py", "medical_assistant/app.py"
ASKED = {"role": "user", "content": "What is the heart?"}


@pytest.fixture(scope="module")
def chat(pair: list[str]) -> list[str]:
    """The pair, with a chat template."""
    return [str(chatty(Path(pair[0]), Path(pair[0]).with_name("chat.gguf"))), pair[1]]


def run_piped(name: str, *arguments: str, stdin: str = "", home: str = "") -> subprocess.CompletedProcess[str]:
    """In a process of its own, as a user runs it with a pipe."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"MEMDEC_HOME": home} if home else {})
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, timeout=120)


def test_the_legal_assistant_states_its_limits_and_forgets_the_oldest_questions(chat: list[str]) -> None:
    long = " ".join(TEXT.split("\n\n")[1].split()) + " Is that so?"  # 140 tokens
    done = run_piped(LEGAL, *chat, stdin=f"{long * 7}\n" * 2)  # one fits with any answer, two with none
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("This is a program and no lawyer. It may invent")
    assert "its oldest question is forgotten" in done.stderr
    assert len(done.stdout) > 5
    done = run_piped(LEGAL, *chat, stdin=f"\n{long * 30}\n")
    assert done.returncode == 1
    assert re.fullmatch(r"Error: a prompt of \d+ tokens and 300 new ones do not fit .*", done.stderr.splitlines()[-1])


def test_the_legal_assistant_names_the_document_that_an_answer_repeats(chat: list[str], tmp_path: Path) -> None:
    with open_model(chat[0]) as model:
        law = model.engine.base.tokenize("[assistant]\n" + TEXT.split("\n\n")[1])
    digest, n_vocab = tokenizer_of(Path(chat[0]))
    index = index_file(tmp_path / "memdec-law-index.gguf", [law], n_vocab, digest=digest, trust=[1.0] * 8)
    done = run_piped(LEGAL, chat[0], str(index), stdin="What may I do?\n")
    assert done.returncode == 0, done.stderr
    assert "The licence of a program says what you may do with it." in done.stdout
    assert re.search(r"\[1\] stands in 0\.txt: .*The licence of a program says", done.stderr)


class Browser:
    """What a page does: ask, and read line by line."""

    def __init__(self, port: int) -> None:
        self.port = port

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Iterator[bytes]]:
        """Status and lines of a response. Closing the iterator closes the connection."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"Content-Type": "application/json"} | headers)
        response = connection.getresponse()

        def lines() -> Iterator[bytes]:
            with closing(connection), response:
                yield from response

        return response.status, lines()

    def ask(self, *messages: Any) -> tuple[int, list[dict[str, Any]]]:
        status, lines = self.request("POST", "/ask", {"messages": messages})
        return status, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def browser(chat: list[str]) -> Iterator[Browser]:
    """The app behind a port of its own."""
    command = [sys.executable, str(EXAMPLES / MEDICAL), *chat, "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as app:
        assert app.stderr
        told = []
        for line in app.stderr:
            told.append(line)
            if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                break
        assert found, told
        yield Browser(int(found[1]))
        app.terminate()
        assert "Traceback" not in app.stderr.read()


def test_the_medical_assistant_streams_both_answers_and_takes_further_questions(browser: Browser) -> None:
    status, lines = browser.ask(ASKED)
    assert status == 200
    for side in ("base", "memory"):
        own = [line for line in lines if line["side"] == side]
        assert [line["end"] for line in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["end"] in ("stop", "length")
        assert all(0 <= line["share"] <= 1 for line in own[:-1])
        assert any(line["share"] for line in own[:-1]) == (side == "memory")  # it took part in one alone
    # They come side by side, not one after the other.
    sides = [line["side"] for line in lines]
    assert sides.index("memory") < len(sides) - 1 - sides[::-1].index("base")
    told = "".join(line["text"] for line in lines if line["side"] == "memory")
    assert browser.ask(ASKED, {"role": "assistant", "content": told}, ASKED)[0] == 200


def test_a_page_that_leaves_gives_its_slots_back(browser: Browser) -> None:
    for _ in range(5):  # two questions at a time have room
        deadline = time.monotonic() + 30
        while True:
            status, lines = browser.request("POST", "/ask", {"messages": [ASKED]})
            if status == 200:
                break
            assert status == 503
            assert b"slots wanted" in b"".join(lines)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        next(lines)
        lines.close()  # type: ignore[attr-defined]  # a generator


def test_the_medical_assistant_answers_what_it_refuses_with_one_line(browser: Browser) -> None:
    assert browser.ask({"role": "king", "content": "x"})[1][0]["error"].startswith("messages[1].role is king")
    assert browser.ask() == (400, [{"error": "messages is []: send a list with one message or more"}])
    status, [found] = browser.ask(ASKED | {"content": TEXT * 9})
    assert status == 400
    assert "do not fit the context of 2048" in found["error"]
    status, lines = browser.request("GET", "/", Host="elsewhere.example")  # a name that leads here from another page
    assert (status, list(lines)) == (400, [b"Invalid host header"])


def test_the_page_states_its_limits_and_loads_nothing_else(browser: Browser) -> None:
    status, lines = browser.request("GET", "/")
    page = b"".join(lines).decode()
    assert status == 200
    assert "This is a program and no doctor. It may invent" in page
    assert not re.search(r"https?:|//\w+\.|@import|<script src", page)


@pytest.mark.parametrize(("name", "domain"), [(LEGAL, "licences"), (MEDICAL, "medicine")])
def test_an_assistant_says_in_one_line_what_it_lacks(
    pair: list[str], tmp_path: Path, name: str, domain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMDEC_HOME", str(tmp_path))
    for arguments, told in (
        ([], f"demo: no such finished demo of {domain}; make it with memdec-edge demo --domain {domain}, or"),
        ([pair[0], "no-memory.gguf"], r"no-memory\.gguf: no such"),
        (pair, "has no chat template"),
    ):
        with pytest.raises(SystemExit, match=f"^Error: .*{told}"):
            run_program(monkeypatch, name, *arguments)


def test_an_assistant_takes_the_files_of_the_newest_demo(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text(TEXT)
    for age, name in enumerate(("new", "old")):
        folder = tmp_path / "demo" / f"licences-{name}"
        folder.mkdir(parents=True)
        (folder / "report.json").write_text("{}")
        os.utime(folder / "report.json", (1e9 - age, 1e9 - age))
    made = tmp_path / "demo" / "licences-new" / "memdec-licences.gguf"  # an index fits the demo's base, quickly
    assert memdec("index", tmp_path / "notes.md", "-m", demo_base(), "--out", made).returncode == 0
    done = run_piped(LEGAL, home=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_every_example_is_listed_in_the_readme_of_the_examples() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"]({path.relative_to(EXAMPLES)})" in text for path in EXAMPLES.rglob("*.[sp][hy]"))
