"""Each kind of file: what becomes of it, and that a file named directly is read as in a folder."""

import csv
import gzip
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from memdec_edge.documents import read_documents
from memdec_edge.errors import CorpusError, MissingExtraError
from tests.support.documents import docx, epub, html_page, pdf, zipped

CHAT = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}
CHAT_TEXT = "User: Why?\n\nAssistant: Because."


def rows_of(kind: str, rows: list[dict[str, Any]]) -> bytes:
    if kind == "parquet":
        out = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), out)
        return out.getvalue()
    if kind == "csv":
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return table.getvalue().encode()
    return ("\n".join(map(json.dumps, rows)) if kind == "jsonl" else json.dumps(rows)).encode()


@pytest.mark.parametrize("inside", [False, True], ids=["named directly", "in a folder"])
@pytest.mark.parametrize(
    ("name", "data", "texts"),
    [
        ("a.rst", b"Title\n=====\n", ["Title\n=====\n"]),
        ("a.py", b"def f():\n\treturn 1\n", ["def f():\n\treturn 1\n"]),
        ("a.json", json.dumps([{"text": "one"}, {"text": "two"}, " "]).encode(), ["one", "two", " "][:2]),
        ("a.json", json.dumps({"data": [{"text": "one"}]}).encode(), ["one"]),
        ("a.json", json.dumps({"version": 1, "rows": ["one", "two"]}).encode(), ["one", "two"]),
        ("a.jsonl.gz", gzip.compress(b'{"text": "packed"}\n', mtime=0), ["packed"]),
        ("a.txt.gz", gzip.compress(b"packed", mtime=0), ["packed"]),
        ("a.csv", 'Text,n\n"two\nlines, one row",1\nzwölf,2\n'.encode(), ["two\nlines, one row", "zwölf"]),
        ("a.csv", b"id;text\n1;half; a row\n".replace(b"half; a row", b'"half; a row"'), ["half; a row"]),
        ("a.tsv", b"id\ttext\n1\tone, two\n", ["one, two"]),
        ("a.parquet", rows_of("parquet", [{"n": 1, "text": "one"}, {"n": 2, "text": None}]), ["one"]),
        ("a.html", html_page("<p>One<br>two</p>"), ["One\ntwo"]),
        ("a.pdf", pdf(["A page of text."]), ["A page of text."]),
        ("a.docx", docx("Heading", "A paragraph."), ["# Heading\n\nA paragraph."]),
        ("a.htm", html_page("<table><tr><td><p>one</p><td><p>two</p></table><p>end"), ["one | two\n\nend"]),
        ("a.epub", epub({"1": "<h1>One</h1><p>First.</p>", "2": "<p>Second.</p>"}), ["# One\n\nFirst.\n\nSecond."]),
    ],
)
def test_a_file_becomes_documents(tmp_path: Path, name: str, data: bytes, texts: list[str], inside: bool) -> None:
    (tmp_path / name).write_bytes(data)
    assert read_documents(tmp_path if inside else tmp_path / name) == texts


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "completion": "Because."},
        {"instruction": "Why?", "input": "", "output": "Because."},
        {"Question": "Why?", "Answer": "Because."},
        {"id": "7", "question": "Why?", "answers": "Because."},
    ],
    ids=lambda row: " ".join(row),
)
def test_dialogues_are_known_by_their_names(tmp_path: Path, kind: str, row: dict[str, str]) -> None:
    (tmp_path / f"a.{kind}").write_bytes(rows_of(kind, [row]))
    assert read_documents(tmp_path) == [CHAT_TEXT]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("row", "text"),
    [
        (CHAT, CHAT_TEXT),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]}, CHAT_TEXT),
        (
            {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}]},
            "System: Be brief.",
        ),
        ({"context": "It rains.", "question": "Why?", "answers": {"text": ["Because."]}},
         "User: It rains.\n\nWhy?\n\nAssistant: Because."),
        ({"context": ["It rains.", "It pours."], "question": "Why?", "answers": ["Because.", "Because!"]},
         "User: It rains.\nIt pours.\n\nWhy?\n\nAssistant: Because."),
        ({"question": "Why?", "answers": [{"text": "Because."}, {"text": "Because!"}]}, CHAT_TEXT),
        ({"prompt": "Why?", "completion": [{"type": "text", "text": "Be"}, {"type": "text", "text": "cause."}]},
         "User: Why?\n\nAssistant: Be\ncause."),
        ({"messages": [{"role": "user", "content": ["part one", "part two"]}]}, "User: part one\npart two"),
    ],
    ids=["messages", "ShareGPT", "parts", "SQuAD", "passages", "answers", "parts of an answer", "strings"],
)  # fmt: skip
def test_turns_become_paragraphs(tmp_path: Path, kind: str, row: dict[str, Any], text: str) -> None:
    (tmp_path / f"a.{kind}").write_bytes(rows_of(kind, [row]))
    assert read_documents(tmp_path / f"a.{kind}") == [text]


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_a_table_without_text_names_what_it_has(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a.{kind}").write_bytes(rows_of(kind, [{"name": "x", "size": 3}]))
    with pytest.raises(CorpusError, match=rf'a\.{kind}: .* name, size, and none .*"prompt" and "completion"'):
        read_documents(tmp_path / f"a.{kind}")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("id,text\n1,one\n2,hello, world\n", 'line 3 has 3 values for 2 columns; put a value with "," in it'),
        ("id\ttext\n1\thello\tworld\n", r'line 2 has 3 values for 2 columns; put a value with "\t" in it'),
        ('id,text\n1,one\n2,"two\n3,three\n4,four\n', "unexpected end of data, in the row from line 3); mend its"),
        ('id,text\n1,"one"two\n', "',' expected after '\"', in the row from line 2); mend its quotes"),
    ],
)
def test_a_table_that_would_lose_text_is_refused(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(table)
    with pytest.raises(CorpusError, match=re.escape(said)):
        read_documents(tmp_path / "a.csv")


def test_blank_values_behind_the_last_column_of_a_table_count_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,one,, \n2,two,\n")
    assert read_documents(tmp_path / "a.csv") == ["one", "two"]


def test_a_book_says_how_many_of_its_pages_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = zipfile.ZipFile(io.BytesIO(epub({"1": "<p>First.</p>", "2": "<p>Second.</p>", "3": "<p>Third.</p>"})))
    page = next(name for name in whole.namelist() if name.endswith("2.xhtml"))
    files = {name: whole.read(name) for name in whole.namelist() if name != page}
    (tmp_path / "a.epub").write_bytes(zipped(files))
    assert read_documents(tmp_path / "a.epub") == ["First.\n\nThird."]
    said = f"Warning: {tmp_path}/a.epub: 1 of 3 pages are not in the file, and left out\n"
    assert capsys.readouterr().err == said


def test_json_is_never_read_as_prose(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"settings": {"size": 3}}')
    with pytest.raises(CorpusError, match=r"data\.json: object 1 has settings"):
        read_documents(tmp_path / "data.json")


@pytest.mark.parametrize(
    ("name", "advice"), [("a.xyz", r"give \.txt \.md .* \.zip"), ("a.doc", r"save it as \.docx"), ("a.xlsx", r"\.csv")]
)
def test_a_suffix_that_is_unknown_lists_the_known_ones(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).write_text("text")
    with pytest.raises(CorpusError, match=rf"a\.\w+ files are not read; .*{advice}".replace(r"a\.\w+ files", r"files")):
        read_documents(tmp_path / name)


def test_members_of_a_zip_are_read_as_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b/two.md", "two")
        archive.writestr("b/page.html", html_page("<p>three</p>"))
        archive.writestr("logo.png", b"x")
        archive.writestr("__MACOSX/._two.md", b"x")
    (tmp_path / "one.txt").write_text("one")
    assert read_documents(tmp_path / "a.zip") == ["three", "two"]
    assert "text: left out, .png files are not read: logo.png" in capsys.readouterr().err
    assert read_documents(tmp_path) == ["three", "two", "one"]


@pytest.mark.parametrize(
    ("name", "module", "make"),
    [
        ("a.pdf", "pypdfium2", lambda: pdf(["text"])), ("a.html", "selectolax", lambda: html_page("<p>text</p>")),
        ("a.docx", "mammoth", lambda: docx("", "text")),
        ("a.parquet", "pyarrow", lambda: rows_of("parquet", [{"text": "a"}])),
    ],
)  # fmt: skip
def test_a_missing_library_names_the_extra(
    tmp_path: Path, name: str, module: str, make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(make())
    (tmp_path / "b.txt").write_text("text that alone would do")
    for loaded in [each for each in sys.modules if each.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{module} is not installed; pip install 'memdec-edge\[documents\]'"):
        read_documents(tmp_path)


def test_a_page_is_read_without_what_surrounds_its_text(tmp_path: Path) -> None:
    menu = "".join(f'<li><a href="/{i}">Chapter {i}</a></li>' for i in range(6))
    (tmp_path / "a.html").write_bytes(
        html_page(
            f"<nav>Home</nav><ul>{menu}</ul><h2>Title<a class=headerlink href=#t>¶</a></h2>"
            "<p>Some <b>bold</b>\n words.</p><ul><li>first<li>second</ul><pre>a\n  b</pre>"
            "<table><tr><th>x<th>y<tr><td>1<td>2</table><script>x()</script><footer>2026</footer>"
        )
    )
    expected = "## Title\n\nSome bold words.\n\n- first\n- second\n\na\n  b\n\nx | y\n1 | 2"
    assert read_documents(tmp_path) == [expected]


def test_an_old_page_is_read_in_the_encoding_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes('<meta charset="koi8-r"><p>привет'.encode("koi8-r"))
    (tmp_path / "b.html").write_bytes("<p>caf\xe9".encode("latin-1"))
    assert read_documents(tmp_path) == ["привет", "café"]
