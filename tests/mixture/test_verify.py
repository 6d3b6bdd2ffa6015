"""draft and verify, in each implementation of this machine, against the mixture's definition and against sample."""

import math
from typing import Any

import numpy as np
import pytest

from memdec_edge import _native
from memdec_edge.errors import NumericsError
from memdec_edge.mixture import mixing, reference, sampling
from memdec_edge.mixture.rows import Chain, Row
from memdec_edge.mixture.weights import Mixture
from tests.mixture.test_mixing import each, mixture_of, running, truth
from tests.mixture.test_sampling import DEFAULT, NONE, PLAIN, normal, sample, softmax


def mixture_row(rows: list[Row], mixture: Mixture, n_vocab: int) -> Row:
    """log of the renormalised mixture, from its definition."""
    p = np.zeros(n_vocab)
    for row, weight, temperature in zip(rows, mixture.weights, mixture.temperatures, strict=True):
        part = softmax(row[:n_vocab].astype(float) / temperature)
        p[: len(part)] += weight / sum(mixture.weights) * part
    with np.errstate(divide="ignore"):
        return np.log(p).astype(np.float32)


@each
@pytest.mark.parametrize("lengths", [[100], [90], [130], [100, 100], [60, 130, 100]])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_draft_is_the_sample_from_the_renormalised_mixture(name: str, lengths: list[int], temperature: float) -> None:
    rows = [normal(n + k, n, 3) for k, n in enumerate(lengths)]
    mixture = mixture_of(*((0.3 / (k + 1), temperature + k) for k in range(len(rows))))
    mixed = mixture_row(rows, mixture, 100)
    out, scratch = np.empty(100, np.float32), sampling.scratch(100)
    with running(name):
        for chain in (PLAIN, DEFAULT, Chain(0, 0.9, 0, 1.5), Chain(0, 1, 0, 0)):
            for position in range(40):
                drafted = sampling.draft(rows, mixture, chain, 6, position, NONE, out, scratch)
                assert drafted == reference.sample(mixed, chain, 6, position, NONE)


@each
def test_memories_without_weight_draft_with_equal_shares(name: str) -> None:
    rows, out = [normal(1, 50), normal(2, 50)], np.empty(50, np.float32)
    mixed = mixture_row(rows, mixture_of((0.5, 1.0), (0.5, 1.0)), 50)
    weightless = mixture_of((0.0, 1.0), (0.0, 1.0))
    with running(name):
        for position in range(40):
            drafted = sampling.draft(rows, weightless, DEFAULT, 6, position, NONE, out, sampling.scratch(50))
            assert drafted == reference.sample(mixed, DEFAULT, 6, position, NONE)


@each
def test_a_drafted_token_is_within_the_vocabulary(name: str) -> None:
    row = np.zeros(80, np.float32)
    row[60:] = 50
    out = np.empty(60, np.float32)
    with running(name):
        for rows in ([row], [row, row]):
            mixture = mixture_of(*[(0.2, 1.0)] * len(rows))
            for position in range(20):
                arguments = (PLAIN, 1, position, NONE, out, sampling.scratch(60))
                assert sampling.draft(rows, mixture, *arguments) < 60


def positions(n: int, lengths: list[int]) -> list[Row]:
    return [normal(length, n * length, 3).reshape(n, length) for length in lengths]


@each
@pytest.mark.parametrize("lengths", [[], [200], [170, 220, 200]])
@pytest.mark.parametrize("chain", [PLAIN, DEFAULT, Chain(0, 0.9, 0, 1), Chain(0, 1, 0, 0)])
def test_verification_is_mixing_and_sampling_row_by_row(name: str, lengths: list[int], chain: Chain) -> None:
    base, memories = normal(5, 6 * 200).reshape(6, 200), positions(6, lengths)
    mixture = mixture_of(*((0.6 / len(lengths), 1.0 + k) for k in range(len(lengths))))
    suppressed, out, scratch = np.array([3, 8], np.int32), np.empty(200, np.float32), sampling.scratch(200)
    with running(name):
        pairs, rows, stats = [], [], []
        for j in range(6):
            stats = mixing.mix(base[j], [memory[j] for memory in memories], mixture, out)
            token = sampling.sample(out, chain, 4, 90 + j, suppressed, scratch)
            _, expected = truth(base[j], [memory[j] for memory in memories], mixture)
            offset = sum(share * stat[1] for share, stat in zip(mixture.shares, expected, strict=True))
            pairs.append((token, float(out[token]) - offset))
            rows.append((out.copy(), stats))
        tokens = [token for token, _ in pairs]
        for draft, n_sampled in (
            (tokens, 6),  # accepted to the end
            (tokens[:5], 6),
            ([*tokens[:5], 199 - tokens[5]], 6),
            ([199 - tokens[0], *tokens[1:]], 1),
            ([*tokens[:3], -1, tokens[4]], 4),
            ([*tokens[:2], 2**40, *tokens[3:5]], 3),
        ):
            found, last, after = sampling.verify(base, memories, mixture, chain, 4, 90, suppressed, draft, out, scratch)
            assert [sample.token for sample in found] == tokens[:n_sampled]
            assert after == mixture
            assert {sample.weights for sample in found} == {mixture.shares}
            np.testing.assert_allclose(
                [sample.log_prob for sample in found], [p for _, p in pairs[:n_sampled]], atol=2e-5
            )
            np.testing.assert_allclose(last, rows[n_sampled - 1][1], rtol=1e-5)
            assert out.tobytes() == rows[n_sampled - 1][0].tobytes()


@each
def test_the_log_probability_is_that_of_the_mixture_whatever_is_suppressed(name: str) -> None:
    base, memory = normal(1, 90).reshape(1, 90), normal(2, 80).reshape(1, 80)
    p = 0.4 * softmax(base[0])
    p[:80] += 0.6 * softmax(memory[0] / 1.5)
    with running(name):
        for suppressed in (NONE, np.argsort(-p)[:3].astype(np.int32)):
            for position in range(20):
                [(token, log_prob, *_)], _, _ = sampling.verify(
                    base, [memory], mixture_of((0.6, 1.5)), Chain(5, 0.9, 0.1, 2), 0, position, suppressed, [],
                    np.empty(90, np.float32), sampling.scratch(90),
                )  # fmt: skip
                assert token not in suppressed
                assert log_prob == pytest.approx(math.log(p[token]), abs=1e-5)


@each
def test_a_mixture_in_which_nothing_is_possible_or_numbers_are_missing_is_refused(name: str) -> None:
    base, out, scratch = np.zeros((2, 4), np.float32), np.empty(4, np.float32), sampling.scratch(4)
    broken = np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]], np.float32)
    every, half = np.arange(4, dtype=np.int32), mixture_of((0.5, 1.0))
    with running(name):
        drafted = sample(base[0], PLAIN)
        with pytest.raises(NumericsError, match="no token is possible"):
            sampling.verify(base, [], mixture_of(), PLAIN, 0, 0, every, [0], out, scratch)
        with pytest.raises(NumericsError, match="memory 1: the logit of token 1 is nan"):
            sampling.verify(base, [broken], half, PLAIN, 0, 0, NONE, [drafted], out, scratch)
        with pytest.raises(NumericsError, match="no token is possible"):
            sampling.draft([base[0]], half, PLAIN, 0, 0, every, out, scratch)
        two = mixture_of((0.5, 1.0), (0.1, 1.0))
        with pytest.raises(NumericsError, match="memory 2: the logit of token 1 is nan"):
            sampling.draft([base[0], broken[1]], two, PLAIN, 0, 0, NONE, out, scratch)


# --- arguments ------------------------------------------------------------------------------------------------------

WRONG: list[tuple[type[Exception], dict[str, Any]]] = [
    (TypeError, {"base": np.zeros((2, 4))}),
    (TypeError, {"suppressed": np.zeros(1, np.int64)}),
    (TypeError, {"scratch": np.zeros(8)}),
    (ValueError, {"base": np.zeros(4, np.float32)}),
    (ValueError, {"base": np.zeros((2, 5), np.float32)}),
    (ValueError, {"base": np.zeros((18, 4), np.float32)}),
    (ValueError, {"memories": [np.zeros((3, 4), np.float32)]}),
    (ValueError, {"memories": []}),
    (ValueError, {"memories": [np.zeros((2, 8), np.float32)[:, ::2]]}),
    (ValueError, {"draft": []}),
    (ValueError, {"draft": [1, 2, 3]}),
    (ValueError, {"scratch": np.zeros(7, np.float32)}),
    (ValueError, {"seed": -1}),
    (ValueError, {"seed": 2**32}),
    (ValueError, {"position": -1}),
    (ValueError, {"chain": Chain(0, float("nan"), 0, 1)}),
    (ValueError, {"chain": Chain(0, 1, 0, float("nan"))}),
    (ValueError, {"chain": Chain(0, 1, 0, -1)}),
]


@each
@pytest.mark.parametrize(("error", "changed"), WRONG)
def test_arguments_of_another_kind_are_refused(name: str, error: type[Exception], changed: dict[str, Any]) -> None:
    given: dict[str, Any] = {
        "base": np.zeros((2, 4), np.float32), "memories": [np.zeros((2, 4), np.float32)],
        "mixture": mixture_of((0.5, 1.0)), "chain": PLAIN, "seed": 0, "position": 0, "suppressed": NONE, "draft": [0],
        "out": np.zeros(4, np.float32), "scratch": sampling.scratch(4),
    }  # fmt: skip
    given |= changed
    with running(name):
        with pytest.raises(error):
            sampling.verify(**given)
        if changed.keys() & {"suppressed", "scratch", "seed", "position", "chain"}:
            rest = {key: given[key] for key in ("chain", "seed", "position", "suppressed", "scratch")}
            with pytest.raises(error):
                sampling.sample(given["base"][0], **rest)
            with pytest.raises(error):
                sampling.draft([given["base"][0]], given["mixture"], out=given["out"], **rest)


@pytest.mark.parametrize("name", _native.variants())
def test_buffers_that_overlap_are_refused(name: str) -> None:
    store = np.zeros((4, 16), np.float32)
    with running(name):
        for row, scratch in ((store[0], store.reshape(-1)), (store[1], store.reshape(-1)[:32])):
            with pytest.raises(ValueError, match="overlaps"):
                sampling.sample(row, PLAIN, 0, 0, NONE, scratch)
        with pytest.raises(ValueError, match="overlaps"):
            sampling.draft([store[0]], mixture_of((0.5, 1.0)), PLAIN, 0, 0, NONE, store[0], sampling.scratch(16))
        with pytest.raises(ValueError, match="overlaps"):
            sampling.verify(store[:1], [], mixture_of(), PLAIN, 0, 0, NONE, [], store[2], store[1:].reshape(-1))
