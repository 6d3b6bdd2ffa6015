"""Documents as questions and answers: which part asks for which, and that no character of a text is lost."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.documents import Document, find_files, parts_of, read_files
from memdec_edge.documents.asked import LONGEST
from memdec_edge.workflow.gather import read_split, write_corpus

PASSAGE = "An anaemia is a lack of red blood cells, or of the iron that they need to carry oxygen."
LINES = st.sampled_from(
    ["# A", "## B c ##", "", "Title", "=====", "-----", "```", "~~~", "text, and more of it.", "1.", "\x0b", "x" * 90]
)


def asked(text: str, title: str | None = "") -> list[tuple[str, str]]:
    """Questions and answers of a document, whichever part they are in."""
    turns = [turn for part in parts_of(Document(text, "a.md", title)) for turn in part.turns]
    assert [role for role, _ in turns] == ["User", "Assistant"] * (len(turns) // 2)
    return [(question, answer) for (_, question), (_, answer) in zip(turns[::2], turns[1::2], strict=True)]


@given(
    lines=st.lists(LINES, max_size=12),
    end=st.sampled_from(["\n", "\r\n"]),
    title=st.sampled_from(["", None, "Title", " A ", "\n"]),
)
def test_the_parts_of_a_document_join_to_its_text_and_answers_stand_in_it(
    lines: list[str], end: str, title: str | None
) -> None:
    text = end.join(lines)
    parts = parts_of(Document(text, "a.md", title))
    assert "".join(part.text for part in parts) == text
    for part in parts:
        for role, said in part.turns:
            assert said.strip()
            assert role == "User" or said in part.text


@pytest.mark.parametrize(
    ("text", "title", "expected"),
    [
        (f"Anaemia (AN)\n{PASSAGE}", "anaemia", [("anaemia", PASSAGE)]),
        (PASSAGE, "Anaemia", [("Anaemia", PASSAGE)]),
        (f"Anaemia\n{PASSAGE}", "", [("Anaemia", PASSAGE)]),
        (f"What is anaemia?\n\n{PASSAGE}", "", [("What is anaemia?", PASSAGE)]),
        (f"# Anaemia\n\n{PASSAGE}\n\n## Signs\n\nPale skin.\n", "", [("Anaemia", PASSAGE), ("Signs", "Pale skin.")]),
        (f"# Blood\n\n## Anaemia\n{PASSAGE}", "", [("Blood: Anaemia", PASSAGE)]),
        (f"=====\nBlood\n=====\n\n{PASSAGE}\n\nSigns\n-----\nPale.", "", [("Blood", PASSAGE), ("Signs", "Pale.")]),
        ("# Use\n```sh\n# a comment\nls\n```\n", "", [("Use", "```sh\n# a comment\nls\n```")]),
        ("# Nothing below", "", []),
        ("Downloads\n\n- Next\n\n# Heart\n\nIt beats.", "", [("Heart", "It beats.")]),  # a menu before the page
        ("## Use\n\n    ls\n# a comment\n    ls\n\n# a prompt\n\nEnd.", "", [
            ("Use", "ls\n# a comment\n    ls"), ("a prompt", "End.")]),  # a line of a listing that stands alone
        ("## Use\n\n# apt-get update\n# apt-get upgrade\n\nEnd.", "", [
            ("Use", "# apt-get update\n# apt-get upgrade\n\nEnd.")]),
        (PASSAGE, "", []),
        ("The heart is a muscle that pumps blood through\nthe body. Blood carries oxygen.", "", []),  # a paragraph
        ("It was a bright morning in the year 1815 and\nThe river ran high after twelve days of rain.", "", []),
        ("First, a sentence.\n\nThen another one.", "", []),
        ("# comment\ndef f():\n    return 1\n", None, []),  # a program
    ],
)  # fmt: skip
def test_titles_headings_and_first_lines_ask_for_what_stands_below(
    text: str, title: str | None, expected: list[tuple[str, str]]
) -> None:
    assert asked(text, title) == expected


def test_a_passage_too_long_for_an_answer_ends_at_a_paragraph_and_the_rest_is_text() -> None:
    text = "# Long\n\n" + "\n\n".join([PASSAGE] * 100)
    answer, rest = parts_of(Document(text, "a.md"))
    assert LONGEST / 2 < len(answer.turns[1][1]) <= LONGEST
    assert answer.turns[1][1].endswith(PASSAGE)
    assert rest.turns == ()


def test_hostile_lines_take_no_time() -> None:
    for line in ("# " + "#" * 200_000 + "x", "```" + "~" * 200_000 + "x`", "=" * 200_000 + "x", "#" * 200_000):
        assert asked(f"Title\n\n{line}\n\n{line}")[0][0] == "Title"


def test_a_long_document_is_asked_in_parts_that_name_it() -> None:
    text = "# Blood\n\n" + "".join(f"## Part {number}\n\n{PASSAGE}\n\n" for number in range(200))
    parts = parts_of(Document(text, "a.md"))
    assert len(parts) > 4
    assert max(len(part.text) for part in parts) <= LONGEST
    assert [part.turns[0][1][:11] for part in parts] == ["Blood: Part"] * len(parts)
    assert {part.turns[2][1][:4] for part in parts} == {"Part"}


def test_dialogues_keep_their_turns_as_far_as_they_are_answered(tmp_path: Path) -> None:
    rows = [
        '{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}, '
        '{"role": "user", "content": "Ah."}]}',
        '{"question": "Why?", "answer": "User: no turn"}',
        '{"messages": [{"role": "user", "content": "Nobody answers."}]}',
        '{"text": "Assistant: one paragraph."}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    corpus = find_files(tmp_path)
    documents = list(read_files(corpus, corpus.all))
    expected = [(("User", "Why?"), ("Assistant", "So.")), (("User", "Why?"), ("Assistant", "User: no turn")), (), ()]
    assert [part.turns for document in documents for part in parts_of(document)] == expected
    assert documents[0].text == "User: Why?\n\nAssistant: So.\n\nUser: Ah."


def test_a_part_of_a_document_keeps_its_title_only_at_the_beginning() -> None:
    document = Document("Anaemia and more", "a.md", "Blood", (("User", "x"), ("Assistant", "y")))
    assert document.part(document.text) is document
    assert document.part("Anaemia") == Document("Anaemia", "a.md", "Blood")
    assert document.part("and more") == Document("and more", "a.md")
    assert Document("a b", "a.py", None).part("b") == Document("b", "a.py", None)


def test_the_corpus_that_learn_writes_has_titles_and_turns(tmp_path: Path) -> None:
    turns = (("User", "Why?"), ("Tool", "3"), ("Assistant", "So."))
    told = Document("User: Why?\n\nTool: 3\n\nAssistant: So.", "a", "", turns)
    documents = [Document("text", "a"), Document("text", "a", "Title"), Document("x = 1", "a.py", None), told]
    write_corpus({"train": documents, "valid": [], "test": []}, tmp_path)
    found = read_split(tmp_path, "train")
    assert [(one.text, one.title, one.turns) for one in found] == [
        (one.text, one.title, one.turns) for one in documents
    ]
    assert (tmp_path / "train.jsonl").read_text().splitlines()[0] == '{"text": "text", "source": "a"}'
