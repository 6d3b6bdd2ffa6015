"""How the documents speak: short sentences, one word for a thing, an actor that is named."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import CLI, PAGES, ROOT, prose, sentences

LONGEST = 25  # words of a sentence
# No person stands for code, and one word for a thing: docs/glossary.md has the words that are used.
UNWANTED = re.compile(
    r"\b(?:who|whom|whoever|nobody|somebody|everybody|anybody|fus(?:e|es|ed|ing|ion)|pick(?:s|ed|ing)?|forbidden|"
    r"trust(?:s|ed)?|adapted|contestants?)\b",
    re.IGNORECASE,
)
WRITTEN = [ROOT / "CHANGELOG.md", *(page for page in PAGES if page != CLI)]  # that one is the program's own help


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_sentence_is_longer_than_25_words(page: Path) -> None:
    found = list(sentences(page))
    assert found
    assert [text for text in found if len(re.findall(r"\S*\w\S*", text)) > LONGEST] == []


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_thing_has_one_word_and_code_is_no_person(page: Path) -> None:
    assert UNWANTED.findall(re.sub(r"`[^`]+`|\]\([^)]*\)", "", prose(page))) == []
