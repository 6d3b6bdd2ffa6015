"""What is read together: waves of texts that begin alike, and batches. Properties, without a model."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.evaluation.waves import LEAST, Reading, Stem, batches, waves

# Contexts that begin alike for a while: so many tokens of one of three texts, then tokens of their own.
CONTEXTS = st.builds(
    lambda text, common, own: (*(text,) * common, *own),
    st.integers(0, 2), st.integers(1, 3 * LEAST), st.lists(st.integers(0, 3), max_size=9),
)  # fmt: skip
STEMS = st.dictionaries(CONTEXTS, st.lists(st.integers(1, 4), min_size=1, max_size=6), max_size=12)


def stems_of(given_: dict[tuple[int, ...], list[int]]) -> list[Stem]:
    none: Any = None
    return [
        Stem(context, [Reading((at,) * length, none) for at, length in enumerate(lengths)])
        for context, lengths in given_.items()
    ]


@given(STEMS, st.integers(2, 9), st.integers(120, 400))
def test_waves_hold_every_continuation_once_fit_and_begin_with_their_opening(
    given_: dict[tuple[int, ...], list[int]], n_seq: int, n_cells: int
) -> None:
    stems = stems_of(given_)
    found = list(waves(stems, n_seq, n_cells))
    assert sorted((stem.context, one.tokens) for wave in found for stem in wave.stems for one in stem.readings) == (
        sorted((stem.context, one.tokens) for stem in stems for one in stem.readings)
    )
    for wave in found:
        assert wave.slots <= n_seq
        assert wave.cells <= n_cells
        assert all(stem.context[: len(wave.opening)] == wave.opening for stem in wave.stems)
        assert not wave.opening or len(wave.opening) >= LEAST
        stored = {(-1, at) for at in range(wave.shared)}
        stored |= {(number, at) for number, stem in enumerate(wave.stems) for at in range(wave.shared, stem.cells)}
        assert wave.cells == len(stored)
        assert wave.cells <= sum(stem.cells for stem in wave.stems)


@given(STEMS)
def test_an_engine_of_one_slot_shares_no_opening(given_: dict[tuple[int, ...], list[int]]) -> None:
    assert all(wave.opening == () and len(wave.stems) == 1 for wave in waves(stems_of(given_), 1, 400))


def test_a_text_that_begins_otherwise_does_not_cost_the_others_their_opening() -> None:
    alike = [Stem((1,) * 100 + (at,)) for at in range(2, 6)]
    other = Stem((9,) * 50)
    first, second = waves([*alike, other], 16, 1000)
    assert [stem.context for stem in first.stems] == [stem.context for stem in alike]
    assert first.opening == (1,) * 100
    assert [stem.context for stem in second.stems] == [other.context]


@given(
    st.lists(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=8),
    st.integers(1, 40),
    st.integers(1, 30),
)
def test_batches_hold_every_token_once_in_order_and_keep_to_their_limits(
    parts: list[tuple[int, int]], most_tokens: int, most_rows: int
) -> None:
    found = list(batches(parts, most_tokens, most_rows))
    assert all(batch for batch in found)
    for batch in found:
        assert sum(end - start for _, start, end, _ in batch) <= most_tokens
        assert sum(wanted for *_, wanted in batch) <= most_rows
        assert len({at for at, *_ in batch}) == len(batch)  # a slot stands once in a batch
    pieces = [piece for batch in found for piece in batch]
    for at, (length, wanted) in enumerate(parts):
        mine = [piece for piece in pieces if piece[0] == at]
        assert [token for _, start, end, _ in mine for token in range(start, end)] == list(range(length))
        rows = [token for _, _, end, count in mine for token in range(end - count, end)]
        assert rows == list(range(length - wanted, length))
