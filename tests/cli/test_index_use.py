"""Commands that mix an index: what a user sees of it."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from memdec_edge.api import open_model
from memdec_edge.cli.footnotes import Footnotes
from memdec_edge.engine import Source
from memdec_edge.options import GenerationOptions, MemoryOptions, SamplingOptions
from tests.conftest import Family
from tests.support.chatty import chatty
from tests.support.command import last_json, memdec
from tests.support.real import EXACT

TEXT = """The heart is a muscle that pumps blood through the body. Blood carries oxygen from the lungs to every cell.

A fever is a body temperature above 38 degrees; it is a symptom, not a disease, and the lungs are an organ of the body.
"""
PROMPT = "Blood is red. The heart is a muscle that pumps"


@pytest.fixture(scope="module")
def index(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("use")
    (folder / "health.txt").write_text(TEXT)
    done = memdec("index", folder / "health.txt", "-m", family.base, "--out", folder / "memdec-health.gguf")
    assert done.returncode == 0, done.stderr
    return folder / "memdec-health.gguf"


def test_run_prints_footnotes_of_passages_from_documents(family: Family, index: Path) -> None:
    arguments = ["run", "-m", family.base, "--memory-scaled", f"{index}:0.99", "-p", PROMPT, "-n", 20, "--temp", 0]
    plain, noted, as_json = memdec(*arguments), memdec(*arguments, "--sources"), memdec(*arguments, "--json")
    assert f"index {index} at lambda 0.99 after its longest matches" in plain.stderr
    text, _, footnotes = noted.stdout.partition("\n\n[1]")
    assert text.replace("[1]", "") == plain.stdout.rstrip("\n")
    assert "health.txt" in footnotes
    assert ": heart is a muscle that pumps blood through the body." in footnotes
    [first, *_] = last_json(as_json)["sources"]
    assert first["text"].startswith(" heart is a muscle that pumps blood through the body.")
    assert first["end"] - first["start"] > 8
    assert "health.txt" in first["document"]
    nothing = memdec("run", "-m", family.base, "-M", index, "-p", "Zq", "-n", 2, "--temp", 0, "--sources")
    assert "No passage of 8 tokens or more" in nothing.stdout
    without = memdec("run", "-m", family.base, "-p", "Zq", "-n", 2, "--temp", 0, "--sources")
    assert "Warning: --sources names passages of indexes, and none is given" in without.stderr
    assert "No passage" not in without.stdout


def test_chat_knows_indexes_their_weights_and_their_sources(family: Family, index: Path, tmp_path: Path) -> None:
    base = chatty(family.base, tmp_path / "chat.gguf", "{{ messages[-1].content }}")
    flags = ["chat", "-m", base, "-n", 20, "--temp", 0]
    plain = memdec(*flags, "--memory-scaled", f"{index}:0.99", stdin=f"{PROMPT}\n".encode())
    lines = f"/memory\n/memory {index}:0.99\n{PROMPT}\n/memory off\n"
    noted = memdec(*flags, "-M", index, "-v", "--sources", stdin=lines.encode())
    assert (plain.returncode, noted.returncode) == (0, 0), noted.stderr
    told = [line for line in noted.stderr.splitlines() if line.startswith("index ")]
    where = "after its longest matches"
    assert told == [f"index {index} at lambda {said}" for said in (f"auto, from 0.85 {where}", f"0.99 {where}", "off")]
    assert "weights of base, memories and indexes at the end, without a match: 1.000, 0.000" in noted.stderr
    assert "after a match of 16 or more: 0." in noted.stderr
    assert "no memory" not in noted.stderr
    assert "health.txt" in noted.stdout
    both = memdec(
        *flags, "--memory-scaled", f"{index}:0.99", "--sources", "--side-by-side", stdin=f"{PROMPT}\n".encode()
    )
    assert "health.txt" in both.stdout, both.stderr
    text, _, footnotes = memdec(
        *flags, "--memory-scaled", f"{index}:0.99", "--sources", stdin=f"{PROMPT}\n".encode()
    ).stdout.partition("\n[1]")
    assert text.replace("[1]", "") == plain.stdout.rstrip("\n")
    assert ": heart is a muscle that pumps blood through the body." in footnotes


def test_verbose_shows_the_weights_of_every_length(family: Family, index: Path) -> None:
    done = memdec("run", "-m", family.base, "-M", index, "-p", PROMPT, "-n", 4, "-v")
    assert "at lambda auto, from 0.85 after its longest matches" in done.stderr
    assert "after a match of 16 or more: 0." in done.stderr


def test_python_names_the_source_of_each_token_and_quotes_it(family: Family, index: Path) -> None:
    memory = MemoryOptions(index, 0.99)
    greedy, few = SamplingOptions(temperature=0), GenerationOptions(n_predict=8)
    with open_model(family.base, [memory], EXACT) as model:
        chunks = list(model.stream(PROMPT, greedy, few))
        sources = [chunk.source for chunk in chunks if chunk.token is not None]
        assert all(sources)
        for before, after in pairwise(sources):
            assert before is not None
            assert after is not None
            assert (after.start, after.end) == (before.start, before.end + 1)
        done = model.generate(PROMPT, greedy, few)
        assert done.sources == [sources[-1]]
        assert model.quote(done.sources[0]).endswith(done.text)
        assert len(done.matched) == 8


def test_eval_shows_matches_by_length(family: Family, index: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 3)
    done = memdec(
        "eval", "-m", family.base, "-M", index, tmp_path / "text.txt", "--window", 64, "--stride", 32, "--json"
    )
    found = last_json(done)
    assert found["perplexity"]["auto"] < found["perplexity"]["base"]
    assert found["perplexity"]["memory"] is None
    assert "match of 16 to 48 before" in done.stdout
    assert [each["lengths"] for each in found["matches"]][-1] == [16, 48]
    json.dumps(found)


def test_what_an_index_cannot_do_is_refused_by_name(family: Family, index: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 30)
    done = memdec("tune", "-m", family.base, "-M", index, tmp_path / "text.txt", "--window", 64, "--stride", 32)
    assert done.returncode == 2
    assert "an index has nothing to tune" in done.stderr
    done = memdec("run", "-m", family.stranger, "-M", index, "-p", "a", "-n", 1)
    assert done.returncode == 1
    assert f"index the documents for this base too: memdec-edge index DOCS -m {family.stranger}" in done.stderr
    done = memdec("run", "-m", index, "-p", "a", "-n", 1)
    assert done.returncode == 1
    assert "document index, not a model" in done.stderr


def test_bench_measures_an_index_beside_the_base(family: Family, index: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 3)
    sizes = ["--prompt-tokens", 16, "-n", 8, "--repetitions", 1, "--draft", 2, "-c", 128]
    done = memdec("bench", "-m", family.base, "-M", index, "-f", tmp_path / "text.txt", *sizes, "--json")
    found = last_json(done)
    assert found["memory"] is None
    assert found["drafted"]["gen_tps"] > 0
    assert found["memory_files"] == [str(index)]
    assert "mixture with drafts" in done.stdout
    assert f"index {index} at lambda 0.85" in done.stdout


def test_marks_stand_where_a_passage_ends() -> None:
    def at(start: int, end: int, name: str = "a.txt") -> Source:
        return Source(Path("x"), name, start, end, end)

    notes = Footnotes()
    steps = [None, at(0, 8), at(0, 9), None, at(40, 48, "b.txt"), at(3, 11), None, None]
    assert [notes.mark(step) for step in steps] == ["", "", "", "[1]", "", "[2]", "[3]", ""]
    assert [source.document for source in notes.sources] == ["a.txt", "b.txt", "a.txt"]


def test_eval_says_that_an_index_holds_the_text(family: Family, index: Path, tmp_path: Path) -> None:
    scoring = ["eval", "-m", family.base, "-M", index, "--window", 16, "--stride", 8]
    done = memdec(*scoring, index.with_name("health.txt"))
    assert f"Warning: {index} holds {index.with_name('health.txt')}, so its perplexity there says little" in done.stderr
    (tmp_path / "other.txt").write_text(TEXT.upper())
    done = memdec(*scoring, tmp_path / "other.txt")
    assert (done.returncode, " holds " in done.stderr) == (0, False)
