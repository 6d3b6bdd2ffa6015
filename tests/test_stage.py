"""train/stage.py: manifests and shards."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memdec_edge.errors import ExistingOutputError, StageError
from memdec_edge.train.stage import MANIFEST, Stage, open_stage


def opened(folder: Path, *, fresh: bool = False, digest: str = "1", k: int = 4) -> Stage:
    return open_stage(folder, "test", {"corpus a.txt": digest}, {"k": k}, fresh)


def test_shards_and_facts_come_back(tmp_path: Path) -> None:
    stage = opened(tmp_path / "stage")
    arrays: dict[str, np.ndarray] = {
        "keys": np.arange(6, dtype=np.float16).reshape(2, 3),
        "ids": np.array([2**32 - 1], np.uint32),
        "none": np.empty((0, 3), np.float32),
    }
    stage.write("sub/a.safetensors", arrays, step="7")
    stage.record(tau=1.5)
    again = opened(tmp_path / "stage")
    found, facts = again.read_with_facts("sub/a.safetensors")
    assert again.facts == {"tau": 1.5}
    assert facts["step"] == "7"
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_every_flipped_byte_and_every_cut_of_a_shard_is_noticed(tmp_path: Path) -> None:
    stage = opened(tmp_path)
    stage.write("a.safetensors", {"x": np.arange(5, dtype=np.float32)})
    path = tmp_path / "a.safetensors"
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        with pytest.raises(StageError, match=r"a\.safetensors: "):
            stage.read("a.safetensors")
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(StageError):
            stage.read("a.safetensors")


def test_a_missing_shard_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"b\.safetensors: damaged"):
        opened(tmp_path).read("b.safetensors")


def test_a_changed_input_is_named_unless_fresh(tmp_path: Path) -> None:
    opened(tmp_path).write("keys/a.safetensors", {"x": np.zeros(1)})
    with pytest.raises(StageError) as caught:
        opened(tmp_path, digest="2")
    assert str(caught.value) == (
        f"{tmp_path}: made with other inputs: corpus a.txt has changed; "
        "use another output folder, or --fresh to redo it"
    )
    opened(tmp_path, digest="2", fresh=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST]


def test_a_changed_option_is_named_with_both_values(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(StageError, match="made with --k 4, now 8; use another output folder, or --fresh"):
        opened(tmp_path, k=8)


def test_a_shard_of_another_run_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "a", k=1).write("x.safetensors", {"x": np.zeros(1)})
    stage = opened(tmp_path / "b", k=2)
    (tmp_path / "a" / "x.safetensors").replace(tmp_path / "b" / "x.safetensors")
    with pytest.raises(StageError, match=r"x\.safetensors: belongs to a run with other inputs or options"):
        stage.read("x.safetensors")


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExistingOutputError):
        opened(tmp_path, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_fresh_keeps_a_stage_in_a_subfolder(tmp_path: Path) -> None:
    opened(tmp_path / "cache")
    opened(tmp_path)
    opened(tmp_path, fresh=True, k=9)
    assert (tmp_path / "cache" / MANIFEST).exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"stage": "test"}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(StageError, match=r"manifest\.json"):
        opened(tmp_path)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "keys").mkdir()
    leftovers = [tmp_path / ".manifest.json.ab_1cdef", tmp_path / "keys" / ".00000.safetensors.k3j4h5g6"]
    for path in leftovers:
        path.write_bytes(b"half")
    opened(tmp_path)
    assert not any(path.exists() for path in leftovers)


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    program = """
import resource, sys
import numpy as np
from pathlib import Path
from memdec_edge.errors import OutputError
from memdec_edge.train.stage import open_stage
stage = open_stage(Path(sys.argv[1]), "test", {}, {}, False)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    stage.write("a.safetensors", {"x": np.zeros(100_000)})
except OutputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith(f"{tmp_path / 'a.safetensors'} could not be written: ")
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]
    assert json.loads((tmp_path / MANIFEST).read_text())["stage"] == "test"
