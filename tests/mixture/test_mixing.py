"""The mixture, in each implementation that this machine runs, against float64 and against its definition."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from memdec_edge import _native
from memdec_edge.errors import NumericsError, OptionError
from memdec_edge.mixture import fallback, kernels, mixing
from memdec_edge.mixture.rows import MAX_MEMORIES, MAX_VERIFIED, Row
from memdec_edge.mixture.weights import Mixture

Case = tuple[Row, list[Row], Mixture]  # base, memories, their mixture
IMPLEMENTATIONS = [*_native.variants(), "numpy"]
LENGTHS = [1, 7, 15, 16, 17, 31, 32, 33, 64, 2047, 2048, 2049, 2063, 4096, 6161]  # around vectors and blocks
each = pytest.mark.parametrize("name", IMPLEMENTATIONS)


@contextmanager
def running(name: str) -> Iterator[None]:
    """Run the shelf on one implementation; "numpy" is what a machine without the extension gets."""
    before = _native.selected()
    with pytest.MonkeyPatch.context() as patch:
        if name == "numpy":
            patch.setattr(kernels, "MISSING", "chosen by the test")
            for function in set(kernels.__all__) - {"MISSING"}:
                patch.setattr(kernels, function, getattr(fallback, function))
        else:
            _native.select(name)
        try:
            yield
        finally:
            _native.select(before)


def mixture_of(*pairs: tuple[float, float]) -> Mixture:
    """Of pairs (weight, temperature)."""
    return Mixture(tuple(weight for weight, _ in pairs), tuple(temperature for _, temperature in pairs))


def truth(
    base: Row, memories: list[Row], mixture: Mixture
) -> tuple[npt.NDArray[np.float64], list[tuple[float, float, float]]]:
    """The definition, in float64, in the log domain: the mixed row, and (max, logsumexp, entropy) of each row."""
    n, weights, temperatures = len(base), mixture.weights, [1.0, *mixture.temperatures]
    scaled = [row[:n].astype(float) / t for row, t in zip([base, *memories], temperatures, strict=True)]
    shares = [max(0.0, 1 - sum(weights)), *weights]
    terms, stats = [], []
    for row, share in zip(scaled, shares, strict=True):
        p = np.exp(row - row.max())
        logsumexp = row.max() + np.log(p.sum())
        p /= p.sum()
        stats.append((row.max(), logsumexp, -np.sum(p[p > 0] * np.log(p[p > 0]))))
        if share > 0:
            terms.append(np.full(n, -np.inf))
            terms[-1][: len(row)] = np.log(share) + row - logsumexp
    high = np.max(terms, axis=0)
    possible = high > -np.inf
    mixed = np.full(n, -np.inf)
    mixed[possible] = high[possible] + np.log(np.sum(np.exp(np.array(terms)[:, possible] - high[possible]), axis=0))
    return mixed + sum(share * stat[1] for share, stat in zip(shares, stats, strict=True)), stats


def assert_near(found: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    """|error| <= 1e-5 * max(1, |expected|), and -inf where -inf is expected."""
    a, b = np.asarray(found, float), np.asarray(expected, float)
    assert np.array_equal(np.isneginf(a), np.isneginf(b))
    finite = np.isfinite(b)
    assert np.all(np.abs(a[finite] - b[finite]) <= 1e-5 * np.maximum(1, np.abs(b[finite])))


def assert_right(base: Row, memories: list[Row], mixture: Mixture) -> None:
    out = np.empty_like(base)
    stats = mixing.mix(base, memories, mixture, out)
    mixed, expected = truth(base, memories, mixture)
    assert_near(out, mixed)
    assert_near(stats, expected)


def spread(rng: np.random.Generator, n: int, scale: float) -> Row:
    """Logits whose maximum keeps rising along the row, with some -inf."""
    row = (rng.normal(size=n) * scale + np.linspace(0, scale, n)).astype(np.float32)
    row[rng.random(n) < 0.1] = -np.inf
    row[rng.integers(n)] = scale
    return row


@st.composite
def rows(draw: st.DrawFn, shared: int = 70) -> Row:
    """A legal row: finite within the first `shared` ids at least once, ties and -inf likely."""
    size = draw(st.sampled_from([1.0, 20.0, 1e4]))
    logits = st.floats(-size, size, width=32) | st.sampled_from([-np.inf, 0.0, -size, size])
    row = draw(hnp.arrays(np.float32, st.integers(1, 70), elements=logits, fill=st.just(np.float32(-1.5))))
    row[draw(st.integers(0, min(len(row), shared) - 1))] = draw(st.floats(-size, size, width=32))
    return row


@st.composite
def cases(draw: st.DrawFn) -> Case:
    base = draw(rows())
    memories = draw(st.lists(rows(len(base)), max_size=3))
    weights: list[float] = []
    for _ in memories:
        weights.append(draw(st.floats(0, 1) | st.sampled_from([0.0, 1.0, 1e-9])) * (1 - sum(weights)))
    temperatures = [draw(st.sampled_from([1.0, 0.7]) | st.floats(0.05, 50)) for _ in memories]
    return base, memories, Mixture(tuple(weights), tuple(temperatures))


@each
@settings(deadline=None, max_examples=300)
@given(case=cases())
def test_the_mixture_is_that_of_float64(name: str, case: Case) -> None:
    with running(name):
        assert_right(*case)


@each
@pytest.mark.parametrize("n", LENGTHS)
def test_rows_of_any_length_are_mixed_to_their_ends(name: str, n: int) -> None:
    rng = np.random.default_rng(n)
    with running(name):
        for scale in (1.0, 30.0, 1e4):
            others = [spread(rng, m, scale) for m in (n, n + 5, max(1, n - 3), n // 2 + 1)]
            for row in others:
                row[0] = scale  # within the shared range of a base of one token
            assert_right(spread(rng, n, scale), others[:1], mixture_of((0.6, 1.0)))
            mixture = mixture_of((0.3, 1.0), (0.2, 0.7), (0.1, 2.0), (0.4, 1.3))
            assert_right(spread(rng, n, scale), others, mixture)


@each
def test_the_mixture_of_probabilities_is_the_published_formula(name: str) -> None:
    rng = np.random.default_rng(1)
    base, memory = (rng.normal(size=1000).astype(np.float32) * 3 for _ in range(2))
    out = np.empty_like(base)
    with running(name):
        stats = mixing.mix(base, [memory], mixture_of((0.3, 2.0)), out)
    p_base = np.exp(base.astype(float)) / np.exp(base.astype(float)).sum()
    p_memory = np.exp(memory.astype(float) / 2) / np.exp(memory.astype(float) / 2).sum()
    offset = 0.7 * stats[0].logsumexp + 0.3 * stats[1].logsumexp
    np.testing.assert_allclose(np.exp(out - offset), 0.3 * p_memory + 0.7 * p_base, rtol=1e-5)


@each
def test_tokens_that_float32_probabilities_cannot_hold_are_mixed(name: str) -> None:
    base, memory = np.zeros(40, np.float32), np.zeros(40, np.float32)
    base[1:], memory[1:] = np.linspace(-200, -9000, 39), np.linspace(-9000, -150, 39)
    with running(name):
        assert_right(base, [memory], mixture_of((0.6, 1.0)))
        assert_right(base - np.float32(5000), [memory + np.float32(5000)], mixture_of((0.6, 1.0)))


@each
def test_logits_that_cancel_against_logsumexp_keep_their_digits(name: str) -> None:
    base = np.array([1e4, -1e4, 0.125], np.float32)
    memory = np.array([-1e4, 1e4, 3.0625], np.float32)
    with running(name):
        for weight in (1e-6, 0.5, 1 - 1e-6, 1.0):
            assert_right(base, [memory], mixture_of((weight, 0.37)))


@each
def test_the_smallest_weight_still_gives_its_tokens_a_probability(name: str) -> None:
    base, memory = np.array([0, 1, -np.inf], np.float32), np.array([0, -np.inf, 1], np.float32)
    with running(name):
        for weights in ([1e-300, 1.0], [1e-20, 0.0]):  # the other row's weight is 1 to the last digit
            assert_right(base, [memory, base], mixture_of(*((weight, 1.0) for weight in weights)))


@each
@settings(deadline=None, max_examples=50)
@given(base=rows(), memory=rows())
def test_without_weight_the_row_is_the_bases_bit_for_bit(name: str, base: Row, memory: Row) -> None:
    memory[0] = 0.0
    out = np.empty_like(base)
    with running(name):
        mixing.mix(base, [memory, memory], mixture_of((0.0, 1.0), (0.0, 0.7)), out)
        assert out.tobytes() == base.tobytes()
        mixing.mix(base, [], mixture_of(), out)
        assert out.tobytes() == base.tobytes()


@each
@settings(deadline=None, max_examples=50)
@given(base=rows(), memory=rows())
def test_with_all_the_weight_the_row_is_the_memorys_bit_for_bit(name: str, base: Row, memory: Row) -> None:
    memory[0] = 0.0
    out = np.empty_like(base)
    with running(name):
        mixing.mix(base, [memory, memory], mixture_of((0.0, 0.7), (1.0, 1.0)), out)
    shared = min(len(base), len(memory))
    assert out[:shared].tobytes() == memory[:shared].tobytes()
    assert np.all(np.isneginf(out[shared:]))


@each
@pytest.mark.parametrize("n", [1, 16, 33, 4100])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_holds_no_number_is_named_and_nothing_is_written(name: str, n: int, bad: float) -> None:
    fine = np.linspace(-3, 3, n).astype(np.float32)
    with running(name):
        for token in {0, n // 2, n - 1}:
            broken = fine.copy()
            broken[token] = bad
            out = np.full(n, 7, np.float32)
            with pytest.raises(NumericsError, match=rf"^base: the logit of token {token} is {bad}"):
                mixing.mix(broken, [fine], mixture_of((0.5, 1.0)), out)
            with pytest.raises(NumericsError, match=rf"^memory 2: the logit of token {token} is {bad}"):
                mixing.mix(fine, [fine, broken], mixture_of((0.5, 1.0), (0.0, 1.0)), out)
            with pytest.raises(NumericsError, match=rf"^m.gguf: the logit of token {token} is {bad}"):
                mixing.row_stats(broken, of="m.gguf")
            assert np.all(out == 7)


@each
@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_a_row_without_one_possible_token_is_refused(name: str, value: float) -> None:
    fine, empty = np.zeros(2100, np.float32), np.full(2100, value, np.float32)
    with running(name), pytest.raises(NumericsError, match="memory 1"):
        mixing.mix(fine, [empty], mixture_of((0.5, 1.0)), np.empty_like(fine))
    empty[2099] = np.nan  # behind a first block of nothing but -inf
    with running(name), pytest.raises(NumericsError, match="nan"):
        mixing.row_stats(empty)


@each
def test_what_lies_beyond_the_bases_vocabulary_is_not_looked_at(name: str) -> None:
    base = np.array([1, 2], np.float32)
    memory = np.array([3, 1, np.nan, np.inf], np.float32)
    out = np.empty_like(base)
    with running(name):
        mixing.mix(base, [memory], mixture_of((0.5, 1.0)), out)
    assert_near(out, truth(base, [memory[:2]], mixture_of((0.5, 1.0)))[0])


@each
@settings(deadline=None)
@given(row=rows(1), data=st.data())
def test_statistics_of_a_row_are_those_of_float64(name: str, row: Row, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, len(row)))
    temperature = data.draw(st.floats(0.05, 50))
    with running(name):
        found = mixing.row_stats(row, length, temperature)
    part = row[:length]
    assert_near(found, truth(part, [part], mixture_of((1.0, temperature)))[1][1])


@each
@pytest.mark.parametrize(
    ("error", "changed"),
    [
        (TypeError, {"base": np.zeros(4)}),
        (TypeError, {"memories": [np.zeros(4, np.int32)]}),
        (ValueError, {"base": np.zeros((2, 2), np.float32)}),
        (ValueError, {"memories": [np.zeros(0, np.float32)]}),
        (ValueError, {"memories": [np.zeros(8, np.float32)[::2]]}),
        (ValueError, {"memories": []}),
        (ValueError, {"out": np.zeros(5, np.float32)}),
        (ValueError, {"memories": [np.zeros(4, np.float32)] * 2}),
    ],
)
def test_arrays_of_another_kind_are_refused(name: str, error: type[Exception], changed: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "base": np.zeros(4, np.float32),
        "memories": [np.zeros(4, np.float32)],
        "mixture": mixture_of((0.5, 1.0)),
        "out": np.zeros(4, np.float32),
    }
    with running(name), pytest.raises(error):
        mixing.mix(**(arguments | changed))


@each
def test_an_output_that_overlaps_an_input_or_is_read_only_is_refused(name: str) -> None:
    memory, store = np.zeros(4, np.float32), np.zeros(12, np.float32)
    frozen = np.zeros(4, np.float32)
    frozen.flags.writeable = False
    with running(name):
        mixing.mix(store[:4], [memory], mixture_of((0.5, 1.0)), store[4:8])  # neighbours do not overlap
        for base, out in ((store[:4], store[:4]), (store[:4], store[3:7]), (memory, frozen)):
            with pytest.raises(ValueError):  # noqa: PT011  NumPy's own words for the read-only one
                mixing.mix(base, [store[2:6]], mixture_of((0.5, 1.0)), out)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(OptionError, match="temperature"):
        mixing.row_stats(np.zeros(4, np.float32), 4, temperature)


@pytest.mark.parametrize("length", [0, 5, -1])
@each
def test_a_length_beyond_the_row_is_refused(name: str, length: int) -> None:
    with running(name), pytest.raises(ValueError, match="length"):
        mixing.row_stats(np.zeros(4, np.float32), length)


@each
def test_the_implementation_is_named(name: str) -> None:
    with running(name):
        expected = "numpy (fallback: chosen by the test)" if name == "numpy" else f"native ({name})"
        assert mixing.implementation() == expected


def test_c_and_python_have_the_same_limits() -> None:
    assert (MAX_MEMORIES, MAX_VERIFIED) == (_native.MAX_MEMORIES, _native.MAX_VERIFIED)


def test_without_the_extension_numpy_mixes_and_says_so() -> None:
    program = (
        "import sys; sys.modules['memdec_edge._native'] = None\n"
        "import numpy as np\n"
        "from memdec_edge.mixture import mixing\n"
        "from memdec_edge.mixture.weights import Mixture\n"
        "a, b, out = np.float32([1, 2]), np.float32([2, 0]), np.zeros(2, np.float32)\n"
        "mixing.mix(a, [b], Mixture((0.5,), (1.0,)), out)\n"
        "print(mixing.implementation(), *out.tolist(), sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    words = done.stdout.split("|")
    assert words[0].startswith("numpy (fallback: ")
    base, memory = np.array([1, 2], np.float32), np.array([2, 0], np.float32)
    assert_near([float(word) for word in words[1:]], truth(base, [memory], mixture_of((0.5, 1.0)))[0])
