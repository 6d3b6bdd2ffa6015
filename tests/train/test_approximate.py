"""train/knn/approximate.py against exact search and brute force in float64."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from memdec_edge.errors import OutputError
from memdec_edge.train.knn import approximate as index
from memdec_edge.train.knn.approximate import Index, build, choose, share_of_mass
from memdec_edge.train.knn.exact import Neighbours

N, D = 6000, 16


@pytest.fixture(scope="module")
def keys() -> np.ndarray:
    """Clusters of 40; key 4321 is a copy of key 1234."""
    random = np.random.default_rng(0)
    centres = 3 * random.standard_normal((N // 40, D))
    found = (centres[random.integers(0, len(centres), N)] + random.standard_normal((N, D)) + 5).astype(np.float16)
    found[4321] = found[1234]
    return found


@pytest.fixture(scope="module", params=["ivfpq", "hnsw"])
def built(request: pytest.FixtureRequest, keys: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Index:
    path, shards = tmp_path_factory.mktemp("index") / "index", np.split(keys, [1000, 1001, 5000])
    build(request.param, shards, path)
    return Index(path, shards)


def test_an_index_finds_nearly_all_of_the_mass(built: Index, keys: np.ndarray) -> None:
    queries = torch.from_numpy(keys[900:1400])
    truth, found = built.exact.search(queries, 64, 900), built.search(queries, 64, 900)
    assert share_of_mass(truth, found, 4.0) >= 0.95


def test_distances_are_those_of_the_keys_themselves_nearest_first(built: Index, keys: np.ndarray) -> None:
    distances, indices = built.search(torch.from_numpy(keys[:50]), 20)
    assert distances.dtype == torch.float32
    assert indices.dtype == torch.int64
    truth = ((keys[:50, None].astype(np.float64) - keys[indices.numpy()].astype(np.float64)) ** 2).sum(2)
    np.testing.assert_allclose(distances.numpy(), truth, atol=1e-3)
    assert bool((distances.diff(dim=1) >= 0).all())
    assert all(len(set(row)) == 20 for row in indices.tolist())


def test_a_key_skips_itself_and_not_its_copy(built: Index, keys: np.ndarray) -> None:
    indices = built.search(torch.from_numpy(keys[1200:1300]), 5, 1200).indices
    assert all(position not in row for position, row in enumerate(indices.tolist(), 1200))
    assert indices[34, 0].item() == 4321
    assert built.search(torch.from_numpy(keys[1234:1235]), 2).indices.sort().values.tolist() == [[1234, 4321]]


def test_what_is_not_found_is_infinitely_far(keys: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PROBES", 1)
    build("ivfpq", [keys], tmp_path / "index")
    distances, indices = Index(tmp_path / "index", [keys]).search(torch.from_numpy(keys[:100]), 1000, 0)
    missing = distances.isinf()
    assert bool(missing.any(1).all())
    assert bool((~missing[:, 0]).all())
    assert bool(((indices == -1) == missing).all())


def test_the_same_keys_give_the_same_index(keys: np.ndarray, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build("ivfpq", [keys], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_full_disk_is_one_line_and_leaves_nothing(keys: np.ndarray, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="could not be written"):
            build("ivfpq", [keys], tmp_path / "index")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_the_share_of_mass_is_weighted_by_distance() -> None:
    truth = Neighbours(torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 9.0]]), torch.tensor([[7, 3, 5], [1, 2, 0]]))
    found = Neighbours(torch.tensor([[1.0, 2.0, 3.0], [5.0, 9.0, torch.inf]]), torch.tensor([[3, 5, 8], [2, 0, -1]]))
    first = (np.exp(-1) + np.exp(-2)) / (1 + np.exp(-1) + np.exp(-2))
    second = (1 + np.exp(-4)) / (2 + np.exp(-4))
    assert share_of_mass(truth, found, 1.0) == pytest.approx((first + second) / 2)
    assert share_of_mass(truth, truth, 1.0) == pytest.approx(1)


def test_exact_search_is_chosen_up_to_what_the_device_bears() -> None:
    assert [choose("auto", n, "cpu") for n in (10, 1_000_000, 1_000_001)] == ["exact", "exact", "ivfpq"]
    assert [choose("auto", n, "cuda") for n in (50_000_000, 50_000_001)] == ["exact", "ivfpq"]
    assert choose("auto", 2_000_000, "mps") == "ivfpq"
    assert [choose(search, 10, "cuda") for search in ("exact", "hnsw")] == ["exact", "hnsw"]
