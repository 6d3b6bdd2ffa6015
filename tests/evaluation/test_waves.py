"""What is read together: waves of texts that begin alike, and batches. Properties, without a model."""

from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.evaluation.waves import PASS, Reading, Stem, batches, waves

# Contexts that begin alike for a while: so many tokens of one of three texts, then tokens of their own.
CONTEXTS = st.builds(
    lambda text, common, own: (*(text,) * common, *own),
    st.integers(0, 2), st.integers(1, 3 * PASS // 2), st.lists(st.integers(0, 3), max_size=9),
)  # fmt: skip
STEMS = st.dictionaries(CONTEXTS, st.lists(st.integers(1, 4), min_size=1, max_size=6), max_size=12)


def stems_of(given_: dict[tuple[int, ...], list[int]]) -> list[Stem]:
    none: Any = None
    return [
        Stem(context, [Reading((at,) * length, none) for at, length in enumerate(lengths)])
        for context, lengths in given_.items()
    ]


@given(STEMS, st.integers(1, 9), st.integers(120, 400))
def test_waves_hold_every_continuation_once_and_fit(
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
        assert wave.cells + max(len(wave.stems) - 1, 0) * wave.shared == sum(stem.cells for stem in wave.stems)


def planned(contexts: Iterable[tuple[int, ...]], n_seq: int = 16) -> list[tuple[int, int]]:
    """For each wave: how many contexts it reads, and how many of their tokens only once."""
    none: Any = None
    stems = [Stem(context, [Reading((1,), none)]) for context in contexts]
    return [(len(wave.stems), wave.shared) for wave in waves(stems, n_seq, 4096)]


def test_a_text_that_begins_otherwise_does_not_cost_the_others_their_opening() -> None:
    assert planned([*((1,) * 100 + (at,) for at in range(2, 6)), (9,) * 50]) == [(4, 99), (1, 0)]


def test_a_shorter_context_does_not_shorten_what_the_next_ones_share() -> None:
    assert planned([(1,) * 40, *((1,) * 300 + (at,) for at in range(2, 20))]) == [(1, 0), (16, 299), (2, 299)]


def test_a_wave_is_not_divided_for_less_than_a_pass_costs() -> None:
    pairs = [(first, *(7,) * 40, second) for first in range(16) for second in (1, 2)]
    assert planned(pairs) == [(16, 0), (16, 0)]
    passages = [(first, *(7,) * 400, second) for first in range(3) for second in (1, 2)]
    assert planned(passages) == [(2, 400)] * 3


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
