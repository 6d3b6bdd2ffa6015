"""train/targets.py against dense formulas in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge.errors import NumericsError, StageError
from memdec_edge.train.artifacts import open_stage
from memdec_edge.train.targets import Support, Targets, aggregate, blend, join, kernel

N_VOCAB = 40


def neighbours(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    distances = np.sort(random.gamma(2.0, 3.0, (n, k)), axis=1).astype(np.float32)
    return distances, random.integers(0, N_VOCAB, (n, k)).astype(np.uint32)


def dense(distances: np.ndarray, values: np.ndarray, tau: float) -> np.ndarray:
    """p_kNN, float64 [n, N_VOCAB]."""
    result: np.ndarray = np.zeros((len(distances), N_VOCAB))
    for row in range(len(distances)):
        for distance, value in zip(distances[row], values[row], strict=True):
            result[row, value] += np.exp(-float(distance) / tau)
    result /= result.sum(1, keepdims=True)
    return result


def support_of(tmp_path: Path, seed: int, n: int, k: int, tau: float) -> tuple[Support, torch.Tensor]:
    """Targets that went to disk and back, and the same ones dense."""
    distances, values = neighbours(seed, n, k)
    stage = open_stage(tmp_path / "stage", "test", {}, {})
    stage.begin()
    stage.write("a.safetensors", aggregate(kernel(distances, tau), values, 1.0, N_VOCAB))
    support = Targets(stage, ["a.safetensors"]).rows([0], n)
    return support, torch.from_numpy(dense(distances, values, tau))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), n=st.integers(1, 8), k=st.integers(1, 30), tau=st.floats(0.5, 50))
def test_aggregated_neighbours_equal_the_dense_formula(seed: int, n: int, k: int, tau: float) -> None:
    distances, values = neighbours(seed, n, k)
    csr, truth = aggregate(kernel(distances, tau), values, 1.0, N_VOCAB), dense(distances, values, tau)
    assert csr["probs"].dtype == np.float16
    assert csr["ids"].dtype == np.uint16
    for row in range(n):
        pairs = slice(csr["offsets"][row], csr["offsets"][row + 1])
        ids, probs = csr["ids"][pairs], csr["probs"][pairs]
        assert (np.diff(ids.astype(int)) > 0).all()
        assert (probs > 0).all()
        found = np.zeros(N_VOCAB)
        found[ids] = probs
        np.testing.assert_allclose(found, truth[row], rtol=6e-4, atol=6e-8)  # float16


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), n=st.integers(1, 8), k=st.integers(1, 30), top_mass=st.floats(0.01, 0.999))
def test_the_fewest_ids_that_reach_the_top_mass_are_kept(seed: int, n: int, k: int, top_mass: float) -> None:
    distances, values = neighbours(seed, n, k)
    csr, truth = aggregate(kernel(distances, 5.0), values, top_mass, N_VOCAB), dense(distances, values, 5.0)
    for row in range(n):
        ids = csr["ids"][csr["offsets"][row] : csr["offsets"][row + 1]]
        largest = np.sort(truth[row])[::-1]
        wanted = int((np.cumsum(largest) - largest < top_mass - 1e-9).sum())
        assert abs(len(ids) - wanted) <= 1  # sums that reach it exactly may be rounded either way
        np.testing.assert_allclose(np.sort(truth[row][ids])[::-1], largest[: len(ids)], rtol=1e-9)


@pytest.mark.parametrize(("n_vocab", "most"), [(60_000, 48), (70_000, 32)])
def test_a_row_takes_192_bytes_at_most_unless_all_is_asked_for(n_vocab: int, most: int) -> None:
    distances, values = np.zeros((2, 500), np.float32), np.tile(np.arange(500, dtype=np.uint32), (2, 1))
    csr = aggregate(kernel(distances, 1.0), values, 0.999, n_vocab)
    assert np.diff(csr["offsets"]).tolist() == [most, most]
    assert most * (csr["ids"].itemsize + csr["probs"].itemsize) == 192
    assert np.diff(aggregate(kernel(distances, 1.0), values, 1.0, n_vocab)["offsets"]).tolist() == [500, 500]


def test_ids_take_four_bytes_only_where_they_must() -> None:
    distances, values = np.zeros((1, 2), np.float32), np.array([[65535, 65536]], np.uint32)
    assert aggregate(kernel(distances, 1.0), values, 1.0, 65537)["ids"].dtype == np.uint32
    assert aggregate(kernel(distances, 1.0), values - 1, 1.0, 65536)["ids"].dtype == np.uint16


def test_a_neighbour_that_was_not_found_has_no_weight() -> None:
    distances = np.array([[1.0, 1.0, np.inf]], np.float32)
    csr = aggregate(kernel(distances, 1.0), np.array([[4, 5, 6]], np.uint32), 1.0, 9)
    assert csr["ids"].tolist() == [4, 5]


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), n=st.integers(1, 8), k=st.integers(1, 30), own=st.integers(1, 10))
def test_a_knn_lm_target_is_the_mixture_of_retriever_and_teacher(seed: int, n: int, k: int, own: int) -> None:
    distances, values = neighbours(seed, n, k)
    random = np.random.default_rng(seed)
    ids = np.array([random.permutation(N_VOCAB)[:own] for _ in range(n)], np.uint32)
    probs, gate = random.uniform(0.01, 1, (n, own)).astype(np.float16), random.uniform(0, 1, n)
    csr = aggregate(*blend(kernel(distances, 5.0), values, ids, probs, gate), 1.0, N_VOCAB)
    truth = gate[:, None] * dense(distances, values, 5.0)
    for row in range(n):
        for token, share in zip(ids[row], probs[row].astype(float) / probs[row].astype(float).sum(), strict=True):
            truth[row, token] += (1 - gate[row]) * share
        pairs = slice(csr["offsets"][row], csr["offsets"][row + 1])
        found = np.zeros(N_VOCAB)
        found[csr["ids"][pairs]] = csr["probs"][pairs]
        np.testing.assert_allclose(found, truth[row], rtol=6e-4, atol=6e-8)  # float16


def test_a_position_without_any_neighbour_has_no_target_of_the_retriever(tmp_path: Path) -> None:
    distances = np.array([[1.0, 2.0], [np.inf, np.inf]], np.float32)
    weights, values = kernel(distances, 1.0), np.array([[3, 4], [5, 6]], np.uint32)
    assert weights[1].tolist() == [0, 0]
    stage = open_stage(tmp_path / "stage", "test", {}, {})
    stage.begin()
    stage.write("a.safetensors", aggregate(weights, values, 1.0, N_VOCAB))
    support = Targets(stage, ["a.safetensors"]).rows([0], 2)
    assert support.offsets.tolist() == [0, 2, 2]
    own = np.array([[7], [8]], np.uint32), np.array([[0.5], [0.5]], np.float16)
    csr = aggregate(*blend(weights, values, *own, np.array([0.5, 0.0])), 1.0, N_VOCAB)
    assert csr["ids"].tolist() == [3, 4, 7, 8]
    assert csr["probs"].tolist()[-1] == 1


def test_joined_parts_are_the_whole() -> None:
    distances, values = neighbours(3, 11, 9)
    rows = [
        aggregate(kernel(distances[low:high], 3.0), values[low:high], 0.9, N_VOCAB)
        for low, high in ((0, 4), (4, 5), (5, 11))
    ]
    whole = aggregate(kernel(distances, 3.0), values, 0.9, N_VOCAB)
    for name, array in join(rows).items():
        assert array.dtype == whole[name].dtype
        np.testing.assert_array_equal(array, whole[name])


def test_distances_far_from_zero_do_not_underflow() -> None:
    distances = np.array([[5000.0, 5000.0, 6000.0]], np.float32)
    csr = aggregate(kernel(distances, 1.0), np.array([[3, 1, 2]], np.uint32), 1.0, 9)
    assert csr["ids"].tolist() == [1, 3]  # exp(-1000) is left out
    assert csr["probs"].tolist() == [0.5, 0.5]


def test_rows_read_back_sum_to_one_across_shards(tmp_path: Path) -> None:
    distances, values = neighbours(5, 12, 20)
    stage = open_stage(tmp_path / "stage", "test", {}, {})
    stage.begin()
    stage.write("a.safetensors", aggregate(kernel(distances[:8], 4.0), values[:8], 1.0, N_VOCAB))
    stage.write("b.safetensors", aggregate(kernel(distances[8:], 4.0), values[8:], 1.0, N_VOCAB))
    targets = Targets(stage, ["a.safetensors", "b.safetensors"])
    support = targets.rows([8, 4, 0], 4)
    truth = dense(distances, values, 4.0)[[8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3]]
    for row in range(12):
        pairs = slice(int(support.offsets[row]), int(support.offsets[row + 1]))
        found = np.zeros(N_VOCAB)
        found[support.ids[pairs].numpy()] = support.probs[pairs].numpy()
        assert support.probs[pairs].sum().item() == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(found, truth[row], rtol=1e-3, atol=1e-6)


def test_a_flipped_byte_in_a_target_shard_is_never_read(tmp_path: Path) -> None:
    support_of(tmp_path, 0, 4, 5, 1.0)
    path = tmp_path / "stage" / "a.safetensors"
    stage = open_stage(tmp_path / "stage", "test", {}, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StageError) as caught:
        Targets(stage, ["a.safetensors"])
    assert str(caught.value).startswith(f"{path}: damaged (its content does not match its digest); remove that file")


def test_more_pairs_than_the_offsets_of_a_shard_can_name_are_refused() -> None:
    empty = {"ids": np.empty(0, np.uint16), "probs": np.empty(0, np.float16)}
    large = {"offsets": np.array([0, 2**31 - 1, 2**31], np.uint32), **empty}
    one = {"offsets": np.array([0, 1], np.uint32), **empty}
    rest = {"offsets": np.array([0, 2**31 - 1], np.uint32), **empty}
    assert join([large, rest])["offsets"].tolist() == [0, 2**31 - 1, 2**31, 2**32 - 1]
    with pytest.raises(NumericsError, match="4294967296 pairs of ids and probabilities are more than one shard"):
        join([large, rest, one])
