"""Bad files: each is a typed error, or a warning that names the file; nothing is ignored in silence."""

import gzip
import hashlib
import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from memdec_edge.documents import file_digests, find_files, read_documents, read_files
from memdec_edge.documents import files as documents_files
from memdec_edge.errors import CorpusError
from tests.documents.test_kinds import rows_of
from tests.support.documents import W, docx, epub, html_page, pdf, zipped

PASSWORD = f"/Encrypt<</Filter/Standard/V 1/R 2/Length 40/P -44/O<{'11' * 32}>/U<{'22' * 32}>>>/ID[<00><00>]"
LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha"}">' for i in range(12))
BOMB = gzip.compress(b"\0" * (20 << 20))
DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "scan.pdf": (lambda: pdf(["", ""]), r"its pages \(2\) are pictures without text; use OCR first, such as ocrmypdf"),
    "locked.pdf": (lambda: pdf(["text"], PASSWORD), "is encrypted; remove its password first"),
    "torn.pdf": (lambda: pdf(["text"])[:200], "is no readable PDF"),
    "empty.pdf": (lambda: b"", "is no readable PDF"),
    "torn.docx": (lambda: docx("", "text")[:300], "is no readable zip"),
    "old.docx": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, r"is encrypted, or an old \.doc"),
    "other.docx": (lambda: zipped({"a.txt": "text"}), r"it has no word/document\.xml"),
    "broken.docx": (lambda: docx("", document="<w:document"), "is no readable Word document"),
    "laughs.docx": (
        lambda: docx("", document=f"<!DOCTYPE d [{LAUGHS}]><w:document {W}><w:body>&l11;</w:body></w:document>"),
        "is no readable Word document",
    ),
    "torn.epub": (lambda: epub({"1": "text"})[:300], "is no readable zip"),
    "other.epub": (lambda: zipped({"a.txt": "text"}), r"is no readable EPUB \('META-INF/container.xml'\)"),
    "laughs.epub": (
        lambda: epub({"1": "text"}, package=f"<!DOCTYPE d [{LAUGHS}]><package>&l11;</package>"),
        "is no readable EPUB",
    ),
    "torn.parquet": (lambda: rows_of("parquet", [{"text": "a"}])[:-9], "is no readable Parquet file"),
    "torn.json": (lambda: b'[{"text": "a"},', r"is no JSON \(line 1: .*\); mend it"),
    "deep.json": (lambda: b"[" * 100_000, r"is no JSON \(nested too deeply\)"),
    "bomb.json.gz": (lambda: BOMB, r"unpacks to over [\d,]+ bytes"),
    "torn.json.gz": (lambda: gzip.compress(b"[]" * 999)[:-9], "is no readable gzip file"),
    "bomb.docx": (lambda: zipped({"word/document.xml": b"\0" * (20 << 20)}), "as a zip bomb does"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_an_error_by_itself_and_a_warning_in_a_folder(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(CorpusError, match=rf"{name}: .*{reason}") as caught:
        read_documents(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(CorpusError, match="no text in it"):
        read_documents(tmp_path)
    (tmp_path / "good.txt").write_text("good")
    capsys.readouterr()
    assert read_documents(tmp_path) == ["good"]
    [warning] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning")]
    assert warning == f"Warning: {caught.value}; it is left out"


def test_a_pdf_that_is_half_pictures_is_read_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "half.pdf").write_bytes(pdf(["A page of text.", ""]))
    assert read_documents(tmp_path / "half.pdf") == ["A page of text."]
    assert "half.pdf: 1 of 2 pages have no text; if they are pictures, use OCR first" in capsys.readouterr().err


def archive_with(*infos: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in infos:
            archive.writestr(name, data)
    return out.getvalue()


def test_a_zip_bomb_is_refused_and_leaves_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bomb.zip").write_bytes(archive_with(("a.txt", b"\0" * (20 << 20))))
    with pytest.raises(CorpusError, match=r"bomb\.zip: unpacks to [\d,]+ times its size, as a zip bomb does"):
        read_documents(tmp_path / "bomb.zip")
    (tmp_path / "a.txt").write_text("good")
    assert read_documents(tmp_path) == ["good"]
    assert "text: left out, unpacks to" in capsys.readouterr().err


def test_a_zip_that_lies_about_its_size_gives_no_more_than_it_claims(tmp_path: Path) -> None:
    data = bytearray(archive_with(("a.txt", b"a" * 5000)))
    true = (5000).to_bytes(4, "little")
    for _ in range(data.count(true)):
        at = data.find(true)
        data[at : at + 4] = (10).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(CorpusError, match=r"a\.txt: is damaged"):
        read_documents(tmp_path / "a.zip")


def test_a_zip_whose_names_lead_out_of_it_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.zip").write_bytes(archive_with(("../../evil.txt", b"evil"), ("/evil.txt", b"evil too")))
    assert sorted(read_documents(tmp_path / "in" / "a.zip")) == ["evil too"]
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.zip"]


def test_a_zip_that_was_rewritten_is_read_anew_and_none_stays_open(tmp_path: Path) -> None:
    for name, text in (("a.txt", "first"), ("b.txt", "second")):
        (tmp_path / "a.zip").write_bytes(archive_with((name, text.encode())))
        assert read_documents(tmp_path / "a.zip") == [text]
    held = [os.path.realpath(each) for each in Path("/proc/self/fd").glob("*")]
    assert str(tmp_path / "a.zip") not in held


def test_a_zip_that_is_replaced_between_finding_and_reading_is_an_error_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(archive_with(("a.txt", b"first")))
    corpus = find_files(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(archive_with(("b.txt", b"second")))
    with pytest.raises(CorpusError, match=r"a\.zip/a\.txt: is in the zip no more"):
        list(read_files(corpus, corpus.all))
    (tmp_path / "a.zip").unlink()
    with pytest.raises(CorpusError, match=r"a\.zip: is no readable zip"):
        list(read_files(corpus, corpus.all))


def test_digests_are_those_of_the_files_in_a_zip_and_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(archive_with(("a.txt", b"one"), ("b.txt.gz", gzip.compress(b"two", mtime=0))))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "out")
    packed, unpacked = (file_digests(find_files(tmp_path / name).all) for name in ("a.zip", "out"))
    assert sorted(packed.values()) == sorted(unpacked.values())
    assert hashlib.sha256(b"one").hexdigest() in packed.values()


def test_a_zip_in_a_zip_is_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner = archive_with(("a.txt", b"inner"))
    (tmp_path / "a.zip").write_bytes(archive_with(("b.zip", inner), ("c.txt", b"outer")))
    assert read_documents(tmp_path / "a.zip") == ["outer"]
    assert "left out, a zip in a zip; unpack the outer one: b.zip" in capsys.readouterr().err


def test_loops_of_links_pipes_and_broken_links_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("once")
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "deep")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    assert read_documents(tmp_path) == ["once"]
    said = capsys.readouterr().err
    assert "left out, this folder was read already: " in said
    assert "left out, broken link: gone.txt" in said
    assert "left out, no regular file: pipe.txt" in said


def test_files_that_cannot_be_opened_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.txt").chmod(0)
    if os.access(tmp_path / "a.txt", os.R_OK):  # root reads everything
        pytest.skip("this user reads every file")
    with pytest.raises(CorpusError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        read_documents(tmp_path)


def test_a_folder_that_cannot_be_listed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_files(tmp_path).left_out == {str(tmp_path / "locked"): "cannot be read (Permission denied)"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no text in it; give .txt .md"),
        (["a.png", "b.JPG"], "there are only pictures: make text of them by OCR, such as tesseract"),
        (["a.xyz"], r"(there are .xyz files)"),
    ],
)
def test_a_folder_without_text_says_what_it_holds(tmp_path: Path, names: list[str], said: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CorpusError) as caught:
        read_documents(tmp_path)
    assert said in str(caught.value)


def test_names_cannot_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "\x1b[2J.pdf").write_bytes(b"x")
    read_documents(tmp_path)
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"\x1b[2J.pdf" in said


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.epub", "a.html", "a.parquet", "a.csv", "a.json", "a.zip"])
def test_flipped_and_cut_bytes_give_text_or_a_typed_error(tmp_path: Path, name: str) -> None:
    whole = {
        "a.pdf": pdf(["Text on a page."] * 3), "a.docx": docx("Head", "text"), "a.epub": epub({"1": "<p>text"}),
        "a.html": html_page("<p>text"), "a.parquet": rows_of("parquet", [{"text": "a"}] * 9),
        "a.csv": b"text\na\n", "a.json": b'[{"text": "a"}]', "a.zip": archive_with(("a.txt", b"text")),
    }[name]  # fmt: skip
    dice = random.Random(name)
    for _ in range(60):
        data = bytearray(whole[: dice.randrange(len(whole))] if dice.random() < 0.3 else whole)
        for _ in range(dice.choice((1, 3, 30)) if data else 0):
            data[dice.randrange(len(data))] = dice.randrange(256)
        (tmp_path / name).write_bytes(data)
        try:
            read_documents(tmp_path / name)
        except CorpusError as error:
            assert "\n" not in str(error)  # noqa: PT017 - both outcomes are right


def test_pages_nest_deeper_than_python_recurses_and_not_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(b"<div>" * 3_000 + b"deep")
    assert read_documents(tmp_path) == ["deep"]
    (tmp_path / "a.html").write_bytes(b"<div>" * 100_000 + b"deep")
    with pytest.raises(CorpusError, match=r"a\.html: nests more than 5,000 elements"):
        read_documents(tmp_path / "a.html")
    (tmp_path / "a.html").write_bytes(b"<p>one<br>" * 100_000)
    assert len(read_documents(tmp_path)[0].split()) == 100_000


def test_a_zip_with_more_than_the_largest_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_files, "LARGEST", 1000)
    (tmp_path / "a.zip").write_bytes(archive_with(("a.txt", os.urandom(600)), ("b.txt", os.urandom(600))))
    with pytest.raises(CorpusError, match=r"a\.zip: unpacks to 1,200 bytes, more than 1,000; unpack it into a folder"):
        read_documents(tmp_path / "a.zip")
