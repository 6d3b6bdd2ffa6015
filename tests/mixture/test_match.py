"""The longest match of a context in documents, in C and in NumPy, against a search that tries everything."""

from array import array
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge.gguf.index_file import Tokens
from memdec_edge.indexing.sort import sorted_prefixes
from memdec_edge.indexing.trust import Part
from memdec_edge.mixture import fallback, kernels
from memdec_edge.mixture.match import CLASSES, Match, Matcher, class_of
from memdec_edge.mixture.rows import LONGEST, MOST
from tests.mixture.test_mixing import IMPLEMENTATIONS, running
from tests.support.indexes import Document, indexed, joined, longest_match

each = pytest.mark.parametrize("name", [IMPLEMENTATIONS[0], "numpy"])  # the lookup has no variants in C
sizes = pytest.mark.parametrize("n_vocab", [7, 70_000], ids=["uint16", "uint32"])

few_tokens = st.integers(0, 4)
texts = st.lists(few_tokens, max_size=70) | st.integers(1, 120).map(lambda n: [0, 1] * (n // 2) + [2] * (n % 2))
collections = st.lists(texts, min_size=1, max_size=6)


def match_of(index: Part, context: list[int]) -> Match:
    matcher = Matcher(index)
    matcher.extend(context)
    return matcher.match()


@each
@sizes
@given(documents=collections, context=st.lists(few_tokens | st.just(6), max_size=60), reading=st.data())
@settings(deadline=None, max_examples=80)
def test_a_match_is_what_trying_every_length_finds(
    name: str, n_vocab: int, documents: list[Document], context: list[int], reading: st.DataObject
) -> None:
    known = reading.draw(st.sampled_from(documents))  # half of the contexts continue one of the documents
    context = context + known[: reading.draw(st.integers(0, len(known)))] if reading.draw(st.booleans()) else context
    with running(name):
        index = indexed(documents, n_vocab)
        match = match_of(index, context)
    length, following = longest_match(documents, context)
    assert match.length == length
    assert match.ids.tolist() == sorted(following)
    assert match.ids.dtype == np.int32
    assert match.probs.dtype == np.float32
    np.testing.assert_allclose(match.probs, [following[t] / following.total() for t in sorted(following)], rtol=1e-6)
    assert (match.where == -1) == (length == 0)
    if length:
        likeliest = max(sorted(following), key=following.__getitem__)
        before = index.tokens[match.where - length : match.where].tolist()
        assert (int(index.tokens[match.where]), before) == (likeliest, context[-length:])


@given(documents=collections, n_vocab=st.sampled_from([7, 70_000]))
@settings(deadline=None)
def test_prefixes_are_ordered_by_the_text_before_them_and_then_by_position(
    documents: list[Document], n_vocab: int
) -> None:
    tokens = joined(documents, n_vocab)
    ends = [-1, *np.flatnonzero(tokens >= n_vocab).tolist()]
    after_end = n_vocab  # a document's beginning comes after all tokens

    def before(position: int) -> list[int]:
        begin = max(end for end in ends if end < position) + 1
        return [*tokens[begin:position][::-1].tolist(), after_end][:LONGEST]

    inside = [p for p in range(1, len(tokens)) if tokens[p] < n_vocab and tokens[p - 1] < n_vocab]
    expected = sorted(inside, key=lambda position: (before(position), position))
    for name in (IMPLEMENTATIONS[0], "numpy"):
        with running(name):
            assert sorted_prefixes(tokens, n_vocab).tolist() == expected


@each
@pytest.mark.parametrize("part", [1, 5, 1000])
def test_the_size_of_parts_does_not_change_the_order(name: str, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = joined([np.random.default_rng(1).integers(0, 9, 3000).tolist(), [1] * 200], 9)
    with running(name):
        expected = sorted_prefixes(tokens, 9)
        done: list[int] = []
        monkeypatch.setattr("memdec_edge.indexing.sort.PART", part)
        assert sorted_prefixes(tokens, 9, done.append).tolist() == expected.tolist()
    assert sum(done) == len(expected)


@each
def test_of_many_occurrences_as_many_as_are_counted_stand_at_even_distances(name: str) -> None:
    rng = np.random.default_rng(2)
    documents = [[0, *rng.integers(1, 2000, 1).tolist()] for _ in range(5000)]
    with running(name):
        index = indexed(documents, 2001)
        match = match_of(index, [0])
    at = index.prefixes[np.arange(MOST) * 5000 // MOST]  # after 0 alone: all prefixes
    ids, counts = np.unique(index.tokens[at], return_counts=True)
    assert match.ids.tolist() == ids.tolist()
    np.testing.assert_array_equal(match.probs, (counts / MOST).astype(np.float32))
    assert match.where == min(at[index.tokens[at] == ids[counts.argmax()]])


@each
def test_a_match_is_at_most_48_tokens_long(name: str) -> None:
    document = np.random.default_rng(3).integers(0, 1000, 200).tolist()
    with running(name):
        index = indexed([document, [*document[1:60], 5]], 1000)
        assert match_of(index, document[:100]).length == LONGEST
        assert match_of(index, document[:60]).ids.tolist() == sorted({document[60], 5})


@each
def test_no_match_crosses_documents_and_nothing_follows_the_last_token(name: str) -> None:
    with running(name):
        index = indexed([[1, 2, 3], [4, 5]], 6)
        assert match_of(index, [2, 3]).length == 0  # 3 is the last of its document
        assert match_of(index, [3, 4]).length == 1
        assert match_of(index, [3, 4]).ids.tolist() == [5]
        assert match_of(index, [5]).where == -1


@each
def test_ids_that_no_document_can_have_match_nothing(name: str) -> None:
    with running(name):
        index = indexed([[1, 2, 3]], 6)
        for token in (6, 65_535, 65_537, 2**31 - 1, -1):
            assert match_of(index, [token]).length == 0
            assert match_of(index, [token, 1]).length == 1


@each
def test_a_session_rewinds(name: str) -> None:
    documents = [np.random.default_rng(4).integers(0, 5, 300).tolist()]
    with running(name):
        index = indexed(documents, 5)
        matcher = Matcher(index)
        matcher.extend(documents[0][:50])
        first = matcher.match()
        matcher.extend(documents[0][50:60])
        assert matcher.match().length == LONGEST
        assert len(matcher) == 60
        matcher.rewind(50)
        assert [part.tolist() for part in matcher.match()[1:3]] == [part.tolist() for part in first[1:3]]
    for wrong in (-1, 51):
        with pytest.raises(ValueError, match="tokens of 50"):
            matcher.rewind(wrong)


def test_classes_cover_all_lengths() -> None:
    assert [class_of(length) for length in range(LONGEST + 1)] == [
        0, *(number for number, (low, high) in enumerate(CLASSES, 1) for _ in range(low, high + 1)),
    ]  # fmt: skip
    assert [class_of(length) for length in (0, 1, 4, 5, 6, 7, 9, 10, 15, 16, 48)] == [0, 1, 4, 5, 5, 6, 6, 7, 7, 8, 8]


# --- arrays that lie ------------------------------------------------------------------------------------------------


@each
@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=80)
def test_arrays_that_lie_give_some_distribution_of_known_tokens(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 8, rng.integers(0, 60))
    numbers[rng.random(len(numbers)) < 0.2] = rng.choice([8, 9, 65_535])
    tokens: Tokens = numbers.astype(np.uint16) if seed % 2 else numbers.astype(np.uint32)
    wild = rng.choice([0, 1, len(tokens) - 1, len(tokens), len(tokens) + 1, 2**31, 2**32 - 1], 40) % 2**32
    prefixes = np.where(rng.random(40) < 0.5, wild, rng.integers(0, len(tokens) + 1, 40)).astype(np.uint32)
    part = Part(tokens, prefixes[: rng.integers(0, 41)], 8)
    with running(name):
        matcher = Matcher(part)
        matcher.extend(rng.integers(0, 9, 60).tolist())
        match = matcher.match()
        if name != "numpy":  # IndexError is as good
            kernels.sort_prefixes(tokens, 8, prefixes.copy(), 0)
    assert (match.length > 0) == (len(match.ids) > 0)
    if match.length:
        assert 0 <= match.where < len(tokens)
        assert (np.diff(match.ids) > 0).all()
        assert match.ids.min() >= 0
        assert match.ids.max() < 8
        assert match.probs.sum() == pytest.approx(1, abs=1e-5)


def arguments(**changes: Any) -> tuple[Any, ...]:
    """Those of match(), which are right without changes."""
    part = indexed([[1, 2, 3]], 6)
    right = {
        "tokens": part.tokens, "prefixes": part.prefixes, "n_vocab": 6, "context": array("i", [1]),
        "ids": np.empty(MOST, np.int32), "probs": np.empty(MOST, np.float32),
    }  # fmt: skip
    return tuple((right | changes).values())


READ_ONLY: npt.NDArray[np.int32] = np.empty(MOST, np.int32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"tokens": np.zeros(3, np.int64)}, TypeError),
        ({"tokens": np.zeros((3, 3), np.uint16)}, TypeError),
        ({"tokens": np.zeros(6, np.uint32)[::2]}, BufferError),
        ({"prefixes": np.zeros(3, np.int32)}, TypeError),
        ({"context": array("q", [1])}, TypeError),
        ({"n_vocab": 0}, ValueError),
        ({"n_vocab": 2**31}, ValueError),
        ({"ids": np.empty(MOST - 1, np.int32)}, ValueError),
        ({"ids": np.empty(MOST, np.float32)}, TypeError),
        ({"ids": READ_ONLY}, BufferError),
        ({"probs": np.empty(MOST - 1, np.float32)}, ValueError),
        ({"probs": np.empty(MOST, np.float64)}, TypeError),
    ],
)
def test_c_refuses_what_is_no_array_of_the_right_kind(changes: dict[str, Any], error: type[Exception]) -> None:
    with running(IMPLEMENTATIONS[0]):
        assert kernels.match(*arguments())[:2] == (1, 1)
        with pytest.raises((error, ValueError) if error is BufferError else error):
            kernels.match(*arguments(**changes))


def test_c_refuses_to_sort_into_arrays_of_the_wrong_size_or_place() -> None:
    tokens = joined([[1, 2, 3]], 6)
    ends = np.empty(6, np.uint64)
    with running(IMPLEMENTATIONS[0]):
        for group in (kernels.group_prefixes, fallback.group_prefixes):
            with pytest.raises(ValueError, match="room for 1 prefixes of 2"):
                group(tokens, 6, np.empty(1, np.uint32), ends)
        with pytest.raises(ValueError, match="ends has"):
            kernels.group_prefixes(tokens, 6, np.empty(2, np.uint32), ends[:5])
        with pytest.raises(ValueError, match="49 shared tokens"):
            kernels.sort_prefixes(tokens, 6, np.empty(2, np.uint32), LONGEST + 1)
        wide = tokens.astype(np.uint32)
        with pytest.raises(ValueError, match="overlaps"):
            kernels.sort_prefixes(wide, 6, wide[:2], 0)
