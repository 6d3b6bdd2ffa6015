"""Families of documents that are equal, exactly or nearly, judged with plain sets of word tuples."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge.documents import duplicates
from memdec_edge.documents.duplicates import FAMILY_OVERLAP, SHINGLE_WORDS, families


def grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def numbered(begin: int, count: int) -> str:
    return " ".join(f"word{i}" for i in range(begin, begin + count))


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=14), min_size=1, max_size=8))
def test_families_are_those_of_a_comparison_of_all_pairs(lists: list[list[str]]) -> None:
    texts = [" ".join(words) for words in lists]
    sets = [grams(text) for text in texts]
    expected = list(range(len(sets)))
    for _ in sets:  # labels travel at least one document a round
        for i, mine in enumerate(sets):
            for j, other in enumerate(sets):
                if len(mine & other) >= FAMILY_OVERLAP * min(len(mine), len(other)):
                    expected[i] = expected[j] = min(expected[i], expected[j])
    assert families(texts) == expected


def test_a_document_inside_another_is_its_family_and_a_stranger_is_not() -> None:
    assert families([numbered(0, 300), numbered(1000, 300), numbered(100, 40)]) == [0, 1, 0]


def test_names_join_what_words_do_not() -> None:
    assert families(["one", "two", "three"], [("a",), ("b",), ("a", "c")]) == [0, 1, 0]


def test_scripts_without_blanks_are_compared_by_characters() -> None:
    text = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
    other = "山路を登りながら、こう考えた。智に働けば角が立つ。情に棹させば流される。"
    assert families([text, other, text[:20] + "何でも薄暗い" + text[20:]]) == [0, 1, 0]


def test_a_sample_of_a_large_corpus_finds_copies_too(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [numbered(1000 * i, 900) for i in range(40)] + [numbered(1000 * i + 100, 700) for i in range(40)]
    exact = families(texts)
    assert exact == [*range(40), *range(40)]
    monkeypatch.setattr(duplicates, "SAMPLE", 4000)  # of 64,000
    assert families(texts) == exact


def test_a_passage_that_everything_holds_does_not_take_the_square_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duplicates, "MOST_HOLDERS", 3)
    notice = numbered(9000, 30)
    assert families([f"{notice} {i}" for i in range(50)]) == [0] * 50
