"""train/knn/exact.py against brute force in float64."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge.train.knn import exact as neighbours
from memdec_edge.train.knn.exact import Exact, Neighbours, Tiles, on_cuda

CPU = torch.device("cpu")
TYPES = st.sampled_from([torch.float32, torch.bfloat16])


def brute_force(queries: np.ndarray, keys: np.ndarray, own: int | None) -> np.ndarray:
    """All squared distances, float64; infinite to oneself."""
    distances: np.ndarray = ((queries[:, None].astype(np.float64) - keys[None].astype(np.float64)) ** 2).sum(2)
    if own is not None:
        distances[np.arange(len(queries)), own + np.arange(len(queries))] = np.inf
    return distances


def check(found: Neighbours, queries: np.ndarray, keys: np.ndarray, k: int, own: int | None) -> None:
    """Distances and those of the indices are the k smallest, to float32's rounding of the squared spread."""
    truth = brute_force(queries, keys, own)
    best, atol = np.sort(truth, axis=1)[:, :k], 2e-6 * float(brute_force(queries, keys, None).max()) + 1e-6
    assert found.distances.dtype == torch.float32
    assert found.indices.dtype == torch.int64
    assert bool((found.distances >= 0).all())
    np.testing.assert_allclose(found.distances.numpy(), best, rtol=1e-5, atol=atol)
    np.testing.assert_allclose(np.take_along_axis(truth, found.indices.numpy(), 1), best, rtol=1e-5, atol=atol)
    assert all(len(set(row)) == k for row in found.indices.tolist())


def with_outlier(keys: np.ndarray, random: np.random.Generator) -> np.ndarray:
    keys[:, 0] = 1000 * random.standard_normal(len(keys))
    return keys


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "normal": lambda keys, random: keys,
    "copies": lambda keys, random: keys[random.integers(0, 1 + len(keys) // 3, len(keys))],
    "far from zero": lambda keys, random: keys + 500,
    "one wide dimension": with_outlier,
    "all alike": lambda keys, random: np.ones_like(keys),
}


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    n=st.integers(2, 90),
    d=st.integers(1, 9),
    seed=st.integers(0, 999),
    own=st.booleans(),
    kind=st.sampled_from(list(KINDS)),
    dtype=TYPES,
)
def test_neighbours_equal_brute_force_whatever_the_keys_and_tiles(
    data: st.DataObject, n: int, d: int, seed: int, own: bool, kind: str, dtype: torch.dtype
) -> None:
    random = np.random.default_rng(seed)
    keys = KINDS[kind](random.standard_normal((n, d)), random).astype(np.float16)
    first = data.draw(st.integers(0, n - 1)) if own else None
    queries = keys[first : first + 7] if first is not None else random.standard_normal((5, d)).astype(np.float16)
    k = data.draw(st.integers(1, n - 1 if own else n))
    cuts = sorted(data.draw(st.lists(st.integers(1, n - 1), max_size=4, unique=True)))

    with pytest.MonkeyPatch.context() as patch:
        tiling = Tiles(*(data.draw(st.integers(1, most)) for most in (6, 4, 17)))
        patch.setattr(neighbours, "ON_CPU", tiling)
        patch.setattr(neighbours, "SAMPLE", (data.draw(st.integers(1, n)), n))
        exact = Exact(np.split(keys, cuts), CPU)
        exact.dtype = dtype
        found = exact.search(torch.from_numpy(queries), k, first)

    check(found, queries, keys, k, first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_of_real_size_give_the_same_neighbours(kind: str, dtype: torch.dtype) -> None:
    random = np.random.default_rng(0)
    keys = KINDS[kind](random.standard_normal((20_000, 8)), random).astype(np.float16)
    exact = Exact(np.split(keys, [16_384]), CPU)
    exact.dtype = dtype
    found = exact.search(torch.from_numpy(keys[16_380:16_400]), 100, 16_380)
    check(found, keys[16_380:16_400], keys, 100, 16_380)


def test_keys_that_crowd_where_the_sample_has_none_are_found() -> None:
    keys = np.random.default_rng(0).standard_normal((70_000, 4)).astype(np.float16)
    exact = Exact([keys], CPU)
    unseen = np.setdiff1d(np.arange(len(keys)), neighbours.sample_positions(len(keys)))[:30_000]
    keys[unseen] = keys[0] + np.float16(0.001)  # too many for the buffers
    for exact.dtype in (torch.float32, torch.bfloat16):
        check(exact.search(torch.from_numpy(keys[:3]), 50, 0), keys[:3], keys, 50, 0)


def test_a_memory_map_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    keys = np.random.default_rng(1).standard_normal((300, 4)).astype(np.float16)
    np.save(tmp_path / "keys.npy", keys)
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")
    check(Exact([mapped], CPU).search(torch.from_numpy(keys[:5]), 10), keys[:5], keys, 10, None)


def test_a_copy_of_a_key_elsewhere_is_a_neighbour_but_the_key_itself_is_not() -> None:
    keys = torch.randn(10, 4, generator=torch.Generator().manual_seed(1)).half()
    keys[7] = keys[2]
    distances, indices = Exact([keys.numpy()], CPU).search(keys, 1, 0)
    assert indices[2].item() == 7
    assert indices[7].item() == 2
    assert distances[2].item() == pytest.approx(0, abs=1e-5)
    assert all(index != position for position, index in enumerate(indices[:, 0].tolist()))


@pytest.mark.parametrize(("gigabytes", "rows"), [(2, 1024), (8, 1024), (24, 4096), (78, 8192), (140, 8192)])
def test_a_card_gets_tiles_that_leave_most_of_its_memory_free(gigabytes: int, rows: int) -> None:
    tiles = on_cuda(gigabytes << 30)
    assert tiles == (4 * rows, rows, 65_536)
    assert tiles.rows * tiles.keys * 2 <= max(1 << 27, (gigabytes << 30) // 40)
