"""Documents through the command line: what will be read, which files are scored, and errors of one line."""

import json
from pathlib import Path

import pytest

from tests.conftest import Family
from tests.support.command import memdec
from tests.support.documents import docx, html_page, pdf


@pytest.mark.parametrize("command", ["cache", "train"])
def test_show_text_writes_what_will_be_read_and_does_nothing_else(tmp_path: Path, command: str) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(pdf(["Text of a page."]))
    (folder / "b.docx").write_bytes(docx("Heading", "A paragraph."))
    (folder / "c.html").write_bytes(html_page("<p>A page of the web.</p>"))
    out, shown = tmp_path / "out", tmp_path / "text.txt"
    arguments = [command, "--teacher", tmp_path / "none.gguf", "--corpus", folder, "--out", out, "--show-text", shown]
    done = memdec(*arguments)
    assert (done.returncode, done.stdout) == (0, f"text {shown}\n")
    assert "text: 3 files (1 .pdf, 1 .docx, 1 .html)" in done.stderr
    text = shown.read_text()
    assert f": {folder / 'a.pdf'} (15 characters)\nText of a page.\n" in text
    assert "# Heading\n\nA paragraph." in text
    assert {line.split(":")[0] for line in text.splitlines() if line.startswith("====")} == {
        "==== train", "==== valid", "==== test"
    }  # fmt: skip
    assert not out.exists()
    again = memdec(*arguments)
    assert again.returncode == 1
    assert again.stderr == f"Error: {shown} exists and is not overwritten; remove it or choose another path\n"


def test_eval_scores_only_the_test_split_and_says_so(family: Family, tmp_path: Path) -> None:
    for name, count in (("train-00000-of-00001", 9), ("validation", 3), ("test-00000-of-00001", 2)):
        rows = (json.dumps({"text": f"the heart pumps blood number {i} through the body"}) for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    scoring = ["eval", "-m", family.base, "--window", 16, "--stride", 8, "--json"]
    done = memdec(*scoring, tmp_path)
    said = "text: the test split, test-00000-of-00001.jsonl; not train-00000-of-00001.jsonl, validation.jsonl"
    assert said in done.stderr.splitlines()
    alone = memdec(*scoring, tmp_path / "test-00000-of-00001.jsonl")
    assert done.stdout == alone.stdout


def test_a_file_that_cannot_be_read_is_one_line(family: Family, tmp_path: Path) -> None:
    (tmp_path / "scan.pdf").write_bytes(pdf([""]))
    done = memdec("eval", "-m", family.base, tmp_path / "scan.pdf")
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: {tmp_path / 'scan.pdf'}: its pages (1) are pictures without text; use OCR first, such as ocrmypdf\n"
    )
