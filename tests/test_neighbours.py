"""train/neighbours.py against brute force in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge.train import neighbours
from memdec_edge.train.neighbours import search


def brute_force(queries: np.ndarray, keys: np.ndarray, own: int | None) -> np.ndarray:
    """All squared distances, float64; infinite to oneself."""
    distances: np.ndarray = ((queries[:, None].astype(np.float64) - keys[None].astype(np.float64)) ** 2).sum(2)
    if own is not None:
        distances[np.arange(len(queries)), own + np.arange(len(queries))] = np.inf
    return distances


@settings(deadline=None, max_examples=60)
@given(data=st.data(), n=st.integers(2, 60), d=st.integers(1, 9), seed=st.integers(0, 999), own=st.booleans())
def test_neighbours_equal_brute_force_whatever_the_tiles(
    data: st.DataObject, n: int, d: int, seed: int, own: bool
) -> None:
    random = np.random.default_rng(seed)
    keys = random.standard_normal((n, d)).astype(np.float16)
    first = data.draw(st.integers(0, n - 1)) if own else None
    queries = keys[first : first + 7] if first is not None else random.standard_normal((5, d)).astype(np.float16)
    k = data.draw(st.integers(1, n - 1 if own else n))
    cuts = sorted(data.draw(st.lists(st.integers(1, n - 1), max_size=4, unique=True)))
    shards = [torch.from_numpy(part) for part in np.split(keys, cuts)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "QUERY_TILE", data.draw(st.integers(1, 6)))
        patch.setattr(neighbours, "KEY_TILE", data.draw(st.integers(1, 17)))
        distances, indices = search(torch.from_numpy(queries), shards, k, first)

    truth = brute_force(queries, keys, first)
    best = np.sort(truth, axis=1)[:, :k]
    assert distances.dtype == torch.float32
    np.testing.assert_allclose(distances.numpy(), best, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(truth, indices.numpy(), 1), best, rtol=1e-5, atol=1e-5)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_tiles_of_real_size_give_the_same_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(20_000, 8, generator=generator).half()
    distances, indices = search(keys[16_380:17_500], [keys[:16_384], keys[16_384:]], 5, 16_380)
    truth = brute_force(keys[17_000:17_020].numpy(), keys.numpy(), 17_000)
    assert indices[620:640].tolist() == truth.argsort(1)[:, :5].tolist()
    np.testing.assert_allclose(distances[620:640].numpy(), np.sort(truth, 1)[:, :5], rtol=1e-4)


def test_a_copy_of_a_key_elsewhere_is_a_neighbour_but_the_key_itself_is_not() -> None:
    keys = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    keys[7] = keys[2]
    distances, indices = search(keys, [keys], 1, 0)
    assert indices[2].item() == 7
    assert indices[7].item() == 2
    assert distances[2].item() == pytest.approx(0, abs=1e-5)
    assert all(index != position for position, index in enumerate(indices[:, 0].tolist()))
