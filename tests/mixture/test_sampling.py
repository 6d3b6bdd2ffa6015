"""The seeded sample, in each implementation of this machine, against llama.cpp's samplers, float64 and statistics."""

import ctypes
import math
import subprocess
import sys
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from memdec_edge.errors import NumericsError
from memdec_edge.mixture import reference, sampling
from memdec_edge.mixture.rows import Chain, Ids, Row
from tests.mixture.test_mixing import each, running

LENGTHS = [1, 2, 3, 15, 17, 63, 64, 65, 129, 511, 512, 513, 1100, 2500]  # around vectors, groups and blocks
NONE: Ids = np.zeros(0, np.int32)
PLAIN = Chain(0, 1.0, 0.0, 1.0)  # temperature 1, nothing truncated
DEFAULT = Chain(40, 0.95, 0.05, 0.8)
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def sample(row: Row, chain: Chain, seed: int = 0, position: int = 0, suppressed: Ids = NONE) -> int:
    return sampling.sample(row, chain, seed, position, suppressed, sampling.scratch(len(row)))


def normal(seed: int, n: int, scale: float = 4.0) -> Row:
    return (np.random.default_rng(seed).normal(size=n) * scale).astype(np.float32)


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    p: npt.NDArray[np.float64] = np.exp(logits.astype(float) - float(logits.max()))
    p /= p.sum()
    return p


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    return Chain(
        draw(st.sampled_from([-1, 0, 1, 2, 7, 40, 1000])),
        draw(st.sampled_from([0.0, 0.3, 0.95, 1.0]) | st.floats(0.01, 1)),
        draw(st.sampled_from([0.0, 0.05, 1.0, 1.5]) | st.floats(0.001, 1)),
        draw(st.sampled_from([0.0, 0.8, 1.0]) | st.floats(0.05, 20)),
    )


# --- what is kept ---------------------------------------------------------------------------------------------------


def llama_chain(row: Row, chain: Chain) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Ids by rising id and their probabilities after llama.cpp's top-k, top-p, min-p and temperature."""
    data = np.zeros(len(row), TOKEN_DATA)
    data["id"], data["logit"] = np.arange(len(row)), row
    pointer = ctypes.cast(data.ctypes.data, llama_cpp.llama_token_data_p)
    array = llama_cpp.llama_token_data_array(pointer, len(row), -1, False)
    for sampler in (
        llama_cpp.llama_sampler_init_top_k(chain.top_k),
        llama_cpp.llama_sampler_init_top_p(chain.top_p, 1),
        llama_cpp.llama_sampler_init_min_p(chain.min_p, 1),
        llama_cpp.llama_sampler_init_temp(chain.temperature),
    ):
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
        llama_cpp.llama_sampler_free(sampler)
    left = np.sort(data[: array.size][data["logit"][: array.size] > -np.inf], order="id")
    return left["id"].tolist(), softmax(left["logit"])


def far_from_the_cuts(row: Row, chain: Chain) -> bool:
    """No token so near a cut that float32, which llama.cpp computes in, may see it on the other side."""
    logits = np.sort(row[row > -np.inf].astype(float))[::-1]
    logits = logits[: chain.top_k] if chain.top_k > 0 else logits
    near_p = np.abs(np.cumsum(softmax(logits)) - chain.top_p) < 1e-5
    near_min = np.abs(logits - logits[0] - math.log(max(chain.min_p, 1e-300))) < 1e-4
    return not (chain.top_p < 1 and near_p.any()) and not near_min[1:].any()


@settings(deadline=None, max_examples=500)
@given(chain=chains(), n=st.integers(1, 300), seed=st.integers(0, 2**20), scale=st.sampled_from([0.1, 1.0, 4.0, 1e4]))
def test_the_kept_tokens_and_their_probabilities_are_llama_cpps(chain: Chain, n: int, seed: int, scale: float) -> None:
    assume(chain.temperature > 0)  # 0 is the largest logit: tested below
    row = normal(seed, n, scale)
    row[1:][np.random.default_rng(seed).random(n - 1) < 0.1] = -np.inf
    assume(len(set(row[row > -np.inf].tolist())) == np.sum(row > -np.inf) and far_from_the_cuts(row, chain))
    ids, probabilities = llama_chain(row, chain)
    kept = np.sort(reference.kept(row, chain, NONE))
    assert kept.tolist() == ids
    np.testing.assert_allclose(softmax(row[kept].astype(float) / chain.temperature), probabilities, rtol=2e-3)


@each
@settings(deadline=None, max_examples=150)
@given(chain=chains(), n=st.integers(1, 100), seed=st.integers(0, 2**20), impossible=st.sampled_from([0.0, 0.3, 0.9]))
def test_in_the_heat_each_token_that_llama_cpp_keeps_is_sampled_and_no_other(
    name: str, chain: Chain, n: int, seed: int, impossible: float
) -> None:
    chain, row, scratch = chain._replace(temperature=1e6), normal(seed, n, 2), sampling.scratch(n)
    row[1:][np.random.default_rng(seed).random(n - 1) < impossible] = -np.inf
    ids, _ = llama_chain(row, chain)
    assume(len(ids) <= 12 and far_from_the_cuts(row, chain))  # 250 samples miss one of 12 with probability 4e-9
    with running(name):
        assert {sampling.sample(row, chain, seed, i, NONE, scratch) for i in range(250)} == set(ids)


def test_kept_tokens_come_by_falling_logit_and_equal_ones_by_rising_id() -> None:
    row = np.array([1, 3, 3, -np.inf, 2, 3], np.float32)
    assert reference.kept(row, PLAIN, NONE).tolist() == [1, 2, 5, 4, 0]
    assert reference.kept(row, Chain(2, 1, 0, 1), NONE).tolist() == [1, 2]
    assert reference.kept(row, PLAIN, np.array([2, 4, -1, 99], np.int32)).tolist() == [1, 5, 0]


@pytest.mark.parametrize(("top_k", "top_p"), [(2, 1.0), (0, 0.5)])
def test_suppressed_tokens_leave_their_places_to_others(top_k: int, top_p: float) -> None:
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    suppressed = np.array([0], np.int32)  # leaves .5, .33, .17: half of that is one token, and two of four are two
    assert reference.kept(row, Chain(top_k, top_p, 0, 1), suppressed).tolist() == ([1, 2] if top_k else [1])


# --- the sample is that of float64 ------------------------------------------------------------------------------------


@each
@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_the_sample_is_that_of_the_reference(name: str, data: st.DataObject) -> None:
    n, chain = data.draw(st.sampled_from(LENGTHS)), data.draw(chains())
    row = normal(data.draw(st.integers(0, 2**20)), n, data.draw(st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0, 1e4])))
    if data.draw(st.booleans()):
        row = np.round(row)  # many ties
    row[1:][np.random.default_rng(n).random(n - 1) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))] = -np.inf
    suppressed = np.array(data.draw(st.lists(st.integers(-1, n + 1), max_size=3)), np.int32)
    seed, position = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(0, 2**64 - 1))
    expected = reference.sample(row, chain, seed, position, suppressed)
    with running(name):
        if expected >= 0:
            assert sample(row, chain, seed, position, suppressed) == expected
        else:
            with pytest.raises(NumericsError, match=r"^no token is possible: every one that is left is suppressed$"):
                sample(row, chain, seed, position, suppressed)


@each
def test_on_equal_logits_the_token_with_the_most_noise_wins_bit_for_bit(name: str) -> None:
    for n in (1, 63, 200, 513, 5000):
        row = np.full(n, -3.25, np.float32)
        with running(name):
            for position in range(60):
                bits = reference.noise_bits(2**32 - 1 - n, position << 40, np.arange(n))
                assert sample(row, PLAIN, 2**32 - 1 - n, position << 40) == np.argmax(bits)


@each
def test_greedy_is_the_largest_logit_and_the_lowest_of_equal_ids(name: str) -> None:
    for n in LENGTHS:
        row = normal(n, n, 1e4)
        row[[n // 3, n - 1, n // 2]] = 5e4
        with running(name):
            for chain in (Chain(0, 1, 0, 0), Chain(40, 0.95, 0.05, 0), Chain(1, 1, 0, 0), Chain(0, 1, 0, 1e-300)):
                assert {sample(row, chain, seed, 5) for seed in range(5)} == {n // 3}


@each
@pytest.mark.parametrize("top_k", [0, 40])
def test_where_rounding_swallows_the_noise_the_lowest_id_wins(name: str, top_k: int) -> None:
    row = normal(8, 2000)
    row[[700, 1100, 1101, 1999]] = 50
    with running(name):
        assert {sample(row, Chain(top_k, 0.95, 0.05, 1e-20), seed) for seed in range(20)} == {700}


@each
def test_only_possible_tokens_are_sampled(name: str) -> None:
    for n in (1, 2, 65, 1500):
        row = np.full(n, -np.inf, np.float32)
        row[n // 2] = -1e4
        with running(name):
            for chain in (PLAIN, DEFAULT, Chain(0, 0.5, 0, 1), Chain(0, 1, 0.3, 1), Chain(40, 0.95, 0.05, 0)):
                assert sample(row, chain) == n // 2
                with pytest.raises(NumericsError, match="no token is possible"):
                    sample(row, chain, suppressed=np.array([n // 2], np.int32))
                with pytest.raises(NumericsError, match="no token is possible"):
                    sample(np.full(n, -np.inf, np.float32), chain)


@each
@pytest.mark.parametrize("chain", [PLAIN, DEFAULT, Chain(0, 0.9, 0, 1), Chain(0, 1, 0.1, 1), Chain(40, 0.95, 0.05, 0)])
def test_a_nan_is_never_sampled_and_infinity_is_refused(name: str, chain: Chain) -> None:
    for n in (4, 70, 1030):
        row = normal(n, n)
        row[::3] = np.nan
        infinite = normal(n, n)
        infinite[n - 2] = np.inf
        with running(name):
            for position in range(20):
                if chain.temperature > 0 and chain.top_p < 1 and not 0 < chain.top_k < n:  # it sums over the whole row
                    with pytest.raises(NumericsError, match="the logit of token 0 is nan"):
                        sample(row, chain, 1, position)
                else:
                    assert not np.isnan(row[sample(row, chain, 1, position)])
            with pytest.raises(NumericsError, match=f"the logit of token {n - 2} is inf"):
                sample(infinite, chain)
            with pytest.raises(NumericsError):
                sample(np.full(n, np.nan, np.float32), chain)


# --- the sample is a draw ---------------------------------------------------------------------------------------------

# The quantiles of the chi-squared distribution for alpha 0.01, by degrees of freedom; from a printed table.
REJECT = {3: 11.345, 5: 15.086, 11: 24.725}


def g_statistic(tokens: list[int], expected: dict[int, float]) -> float:
    """2 sum O log(O / E) over the tokens of `expected`; every other token is infinitely surprising."""
    if not set(tokens) <= set(expected):
        return math.inf
    counts = {token: tokens.count(token) for token in expected}
    return 2 * sum(o * math.log(o / (expected[t] * len(tokens))) for t, o in counts.items() if o)


SMALL = np.log(np.array([20, 3, 9, 1, 14, 6, 2, 11, 5, 17, 4, 8], np.float32))
TRUNCATED = Chain(8, 0.88, 0.35, 0.7)  # 8 tokens of 12, then 7, then the 6 with at least 7 of 20


def expected_of(chain: Chain) -> dict[int, float]:
    """SMALL's distribution, from llama.cpp."""
    return dict(zip(*llama_chain(SMALL, chain), strict=True))


@each
@pytest.mark.parametrize("along", ["positions", "seeds"])
@pytest.mark.parametrize("chain", [TRUNCATED, TRUNCATED._replace(top_k=0), Chain(0, 1, 0, 1.3), Chain(4, 1, 0, 1)])
def test_draws_follow_the_distribution_of_the_chain(name: str, along: str, chain: Chain) -> None:
    scratch, draws = sampling.scratch(len(SMALL)), range(20_000)
    with running(name):
        if along == "positions":
            tokens = [sampling.sample(SMALL, chain, 77, i, NONE, scratch) for i in draws]
        else:
            tokens = [sampling.sample(SMALL, chain, i, 5, NONE, scratch) for i in draws]
    expected = expected_of(chain)
    assert g_statistic(tokens, expected) < REJECT[len(expected) - 1]
    biased = {token: p * (1.15 if token == 0 else 1) for token, p in expected.items()}
    biased = {token: p / sum(biased.values()) for token, p in biased.items()}
    assert g_statistic(tokens, biased) > REJECT[len(expected) - 1]
    assert (
        g_statistic(tokens, expected_of(chain._replace(temperature=chain.temperature * 0.9)))
        > REJECT[len(expected) - 1]
    )


@each
def test_draws_over_many_blocks_follow_the_distribution(name: str) -> None:
    places = [7, 511, 512, 700, 1023, 1024, 1500, 2047, 2048, 2600, 3000, 3333]
    row = np.full(3400, -30.0, np.float32)  # 1e-13 each: never drawn
    row[places] = SMALL[::-1]  # the largest in the last block
    expected = dict(zip(places, softmax(SMALL[::-1]), strict=True))
    scratch = sampling.scratch(len(row))
    with running(name):
        tokens = [sampling.sample(row, PLAIN, 3, i, NONE, scratch) for i in range(20_000)]
    assert g_statistic(tokens, expected) < REJECT[11]


def test_noise_is_uniform_and_that_of_neighbours_is_unrelated() -> None:
    n = 2**17
    ids = np.arange(n)
    for seed, position in ((0, 0), (1, 0), (0, 1), (2**32 - 1, 2**63)):
        bits = reference.noise_bits(seed, position, ids)
        for shift in (0, 8, 16, 24):
            counts = np.bincount(bits >> np.uint32(shift) & np.uint32(255), minlength=256)
            assert np.sum((counts - n / 256) ** 2) / (n / 256) < 330.5  # chi-squared, 255 degrees, alpha 0.001
        others = [reference.noise_bits(*key, ids) for key in ((seed ^ 1, position), (seed, position + 1))]
        others += [
            np.roll(bits, 1),
            np.roll(bits, 2),
            np.roll(bits, 256),
            reference.noise_bits(position % 2**32, seed, ids),
        ]
        for other in others:
            if not np.array_equal(bits, other):
                assert abs(np.corrcoef(bits, other)[0, 1]) < 4 / math.sqrt(n)
                shared = np.unpackbits((bits ^ other).view(np.uint8)).mean()
                assert abs(shared - 0.5) < 4 * 0.5 / math.sqrt(32 * n)


def test_noise_of_one_token_over_positions_is_unrelated_to_that_of_others() -> None:
    noise = np.array([reference.noise_bits(9, position, np.arange(64)) for position in range(4000)], float)
    correlations = np.corrcoef(noise.T)[np.triu_indices(64, 1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(4000)
    successive = [np.corrcoef(noise[:-1, token], noise[1:, token])[0, 1] for token in range(64)]
    assert np.abs(successive).max() < 4 / math.sqrt(4000)


def test_the_noise_is_gumbels() -> None:
    noise = reference.gumbel(4, 2, np.arange(10**6))
    assert abs(noise.mean() - 0.5772157) < 4 * math.pi / math.sqrt(6) / 1000  # Euler's constant
    assert abs(noise.var() - math.pi**2 / 6) < 0.02


def test_a_seed_gives_the_same_noise_for_ever() -> None:
    """Computed once by this code: texts made with a seed stay reproducible across versions."""
    assert reference.noise_bits(0, 0, [0, 1, 2, 151_935]).tolist() == [1235709928, 946642452, 1379683712, 4118486670]
    assert reference.noise_bits(2**32 - 1, 2**64 - 1, [0, 1, 2, 151_935]).tolist() == [
        2773051353,
        731712186,
        1900785397,
        3895503800,
    ]


def test_without_the_extension_numpy_samples_the_same() -> None:
    program = (
        "import sys; sys.modules['memdec_edge._native'] = None\n"
        "import numpy as np\n"
        "from memdec_edge.mixture import sampling\n"
        "row, none = np.sin(np.arange(500, dtype=np.float32)), np.zeros(0, np.int32)\n"
        "chain = sampling.Chain(0, 0.9, 0.05, 0.8)\n"
        "print(*(sampling.sample(row, chain, 1, i, none, sampling.scratch(500)) for i in range(20)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    row = np.sin(np.arange(500, dtype=np.float32))
    assert [int(token) for token in found] == [sample(row, Chain(0, 0.9, 0.05, 0.8), 1, i) for i in range(20)]
