"""Pages as one text."""

import pytest

from memdec_edge.documents.cleaning import clean_pages


def test_headers_footers_and_page_numbers_are_left_out() -> None:
    pages = [
        f"Annual Report 2025\n{'A line of the text that is about as wide as the page is, number ' + str(i)}\nEnd {i}.\n"
        f"Company Ltd. | {i + 3}"
        for i in range(5)
    ]
    text = clean_pages(pages)
    assert "Annual Report" not in text
    assert "Company" not in text
    assert all(f"End {i}." in text for i in range(5))


def test_a_running_title_with_the_number_of_its_page_is_left_out() -> None:
    pages = [
        f"{i + 11} Chapter {name}\nFirst {name}.\nLater {name}.\nLast {name}." for i, name in enumerate("abcdefgh")
    ]
    text = clean_pages(pages)
    assert "Chapter" not in text
    assert all(f"{word} {name}." in text for name in "abcdefgh" for word in ("First", "Later", "Last"))


def test_lines_that_look_like_no_header_stay() -> None:
    pages = ["One.\nTwo.\nThree.", "Four.\nFive.\nSix."]
    assert clean_pages(pages) == "One.\nTwo.\nThree.\nFour.\nFive.\nSix."


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("the exam-\nple of a divided word", "the example of a divided word"),
        ("a well-known case and a well-\nknown one", "a well-known case and a well-known one"),
        ("docu\x02mentation", "documentation"),
        ("eﬃcient ﬁles", "efficient files"),
        ("Chapter one . . . . . . . . 7\nText.", "Text."),
        ("soft\u00adhyphen", "softhyphen"),
    ],
)
def test_what_layout_put_in_is_taken_out(page: str, text: str) -> None:
    assert clean_pages([page]) == text


def test_a_paragraph_becomes_one_line_and_short_lines_stay() -> None:
    page = (
        "This paragraph is set in lines of a width\nthat the page gives, and it goes on and on\nuntil it ends.\n"
        "$ command\n$ another\n• an item of a list that is rather long too\n• a second one"
    )
    assert clean_pages([page]) == (
        "This paragraph is set in lines of a width that the page gives, and it goes on and on until it ends.\n"
        "$ command\n$ another\n• an item of a list that is rather long too\n• a second one"
    )


def test_lines_of_japanese_are_joined_without_a_blank() -> None:
    assert clean_pages(
        ["吾輩は猫である。名前はまだ無い。どこで生れ\nたかとんと見当がつかぬ。何でも薄暗いじめじ\nめした所で。"]
    ) == ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で。")
