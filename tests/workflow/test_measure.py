"""What is measured of a memory: the passages that base and mixture continue."""

from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.workflow.measure import LEAST_PASSAGE, PROMPT, passages_of


@given(st.lists(st.integers(0, 700), max_size=12), st.integers(0, 6))
def test_passages_are_as_many_as_asked_for_and_begin_their_documents(lengths: list[int], most: int) -> None:
    documents = [("some words " * 64)[:length] for length in lengths]
    found = passages_of(documents, most)
    long_enough = [text for text in documents if len(text) >= LEAST_PASSAGE]
    assert len(found) == min(most, len(long_enough))
    for (beginning, truth), text in zip(found, long_enough, strict=False):
        assert 0 < len(beginning) <= PROMPT
        assert text.startswith(beginning + (truth or ""))
        assert truth
