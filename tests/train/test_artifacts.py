"""train/artifacts.py, manifest.py, shards.py: what a stage keeps, proves, and never touches."""

import json
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from memdec_edge.errors import ExistingOutputError, StageError
from memdec_edge.files import MANIFEST, atomic_path, sha256
from memdec_edge.train import shards
from memdec_edge.train.artifacts import Stage, open_stage
from memdec_edge.train.shards import Arrays
from tests.support.training import flip

LAYOUT = ("*.safetensors", "keys/*.safetensors", "sub/*.safetensors")


def opened(folder: Path, *, fresh: bool = False, digest: str = "1", k: int = 4) -> Stage:
    return open_stage(folder, "test", {"corpus a.txt": digest}, {"k": k}, LAYOUT, fresh)


def begun(folder: Path, *, fresh: bool = False, digest: str = "1", k: int = 4) -> Stage:
    stage = opened(folder, fresh=fresh, digest=digest, k=k)
    with closing(stage):
        stage.begin()
    return stage


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_shards_and_manifest_entries_come_back(tmp_path: Path) -> None:
    stage = begun(tmp_path / "stage")
    arrays: dict[str, np.ndarray] = {
        "keys": np.arange(6, dtype=np.float16).reshape(2, 3),
        "ids": np.array([2**32 - 1], np.uint32),
        "none": np.empty((0, 3), np.float32),
    }
    stage.write("sub/a.safetensors", arrays, step="7")
    stage.record(tau=1.5)
    again = opened(tmp_path / "stage")
    found, metadata = again.read_with_metadata("sub/a.safetensors")
    assert again.manifest == {"tau": 1.5}
    assert metadata["step"] == "7"
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_every_flipped_byte_and_every_cut_of_a_shard_is_noticed(tmp_path: Path) -> None:
    stage = begun(tmp_path)
    stage.write("a.safetensors", {"x": np.arange(5, dtype=np.float32)}, step="8")
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
    begun(tmp_path).write("keys/a.safetensors", {"x": np.zeros(1)})
    with pytest.raises(StageError) as caught:
        opened(tmp_path, digest="2")
    assert str(caught.value) == (
        f"{tmp_path}: made with other inputs: corpus a.txt has changed; "
        "use another output folder, or `fresh` to redo it"
    )
    stage = opened(tmp_path, digest="2", fresh=True)
    assert (tmp_path / "keys" / "a.safetensors").exists()  # what is checked afterwards may still refuse the work
    with closing(stage):
        stage.begin()
    assert names(tmp_path) == [MANIFEST]


def test_a_changed_option_is_named_with_both_values(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(StageError, match="made with `k` 4, now 8; use another output folder, or `fresh`"):
        opened(tmp_path, k=8)


def test_options_that_an_earlier_version_recorded_by_their_flags_are_the_same_options(tmp_path: Path) -> None:
    def look(now: dict[str, float], before: dict[str, float]) -> Stage:
        folder = tmp_path / "out"
        shutil.rmtree(folder, ignore_errors=True)
        with closing(open_stage(folder, "test", {}, before)) as stage:
            stage.begin()
            stage.write("a.safetensors", {"x": np.zeros(1)})
        return open_stage(folder, "test", {}, now)

    earlier = {"--knn-temp": 2.0, "--k": 4, "a validation share of": 0.05, "gradients clipped at": 1}
    earlier |= {"batch": 2, "accumulate": 3}
    now = {"knn_temp": 2, "k": 4, "valid_fraction": 0.05, "clip": 1.0, "batch": 6}
    again = look(now, earlier)
    assert again.begun
    assert again.read("a.safetensors")["x"] == [0]
    for name, value, was in (("knn_temp", 3, 2), ("valid_fraction", 0.1, 0.05), ("clip", 2, 1)):
        with pytest.raises(StageError, match=f"made with `{name}` {was}, now {value};"):
            look(now | {name: value}, earlier)


def test_a_shard_of_another_run_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "a", k=1).write("x.safetensors", {"x": np.zeros(1)})
    stage = begun(tmp_path / "b", k=2)
    (tmp_path / "a" / "x.safetensors").replace(tmp_path / "b" / "x.safetensors")
    with pytest.raises(StageError, match=r"x\.safetensors: belongs to a run with other inputs or options"):
        stage.read("x.safetensors")


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_a_users_file_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExistingOutputError, match=r"thesis\.tex exists"):
        opened(tmp_path, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_fresh_keeps_what_has_not_changed(tmp_path: Path) -> None:
    stage = begun(tmp_path)
    stage.write("keys/a.safetensors", {"x": np.zeros(1)})
    stage.record(tau=1.5)
    assert begun(tmp_path, fresh=True).manifest == {"tau": 1.5}
    assert names(tmp_path) == ["keys", "keys/a.safetensors", MANIFEST]


@pytest.mark.parametrize("damaged", ["keys/a.safetensors", "notes.txt"])
def test_fresh_redoes_what_is_damaged(tmp_path: Path, damaged: str) -> None:
    stage = begun(tmp_path)
    stage.write("keys/a.safetensors", {"x": np.zeros(1)})
    stage.claim("notes.txt")
    (tmp_path / "notes.txt").write_text("one")
    stage.record(files={"notes.txt": sha256(tmp_path / "notes.txt")})
    flip(tmp_path / damaged)
    assert begun(tmp_path, fresh=True).manifest == {}
    assert names(tmp_path) == [MANIFEST]


def put(folder: Path, *names: str) -> None:
    """What a user's own hand puts into a folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")


def test_fresh_removes_only_what_the_stage_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stage = begun(out)
    stage.write("keys/a.safetensors", {"x": np.zeros(1)})
    stage.claim("config.json", "sub/tokens.npy")
    put(out, "config.json", "sub/tokens.npy")
    stage.record(files={"config.json": "1"})
    begun(tmp_path / "other", k=5).write("b.safetensors", {"x": np.zeros(1)})
    shutil.copy(tmp_path / "other" / "b.safetensors", out / "keys" / "b.safetensors")
    mine = [
        "keys/notes.md",
        "keys/mine.safetensors",
        "memdec-mine.gguf",
        "notes/a.txt",
        "sub/valid.npy",
        "best.safetensors",
    ]
    put(out, *mine)
    begun(out, fresh=True, k=9)
    kept = [*mine, "keys", "notes", "sub", "keys/b.safetensors", MANIFEST]
    assert names(out) == sorted(kept)


@pytest.mark.parametrize("hostile", ["../outside.txt", "ABSOLUTE", "link/outside.txt"])
def test_a_manifest_that_names_files_elsewhere_removes_none_of_them(tmp_path: Path, hostile: str) -> None:
    put(tmp_path, "outside.txt")
    begun(tmp_path / "out")
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    path = tmp_path / "out" / MANIFEST
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "own": [str(tmp_path / "outside.txt") if hostile == "ABSOLUTE" else hostile]}))
    begun(tmp_path / "out", fresh=True, k=9)
    assert (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_holds_nothing_but_folders_is_no_empty_one(tmp_path: Path, fresh: bool) -> None:
    put(tmp_path, "keys/mine.safetensors")
    with pytest.raises(ExistingOutputError) as caught:
        opened(tmp_path, fresh=fresh)
    assert str(caught.value) == f"{tmp_path / 'keys'} exists and is not overwritten; remove it or choose another path"


def test_a_folder_that_stands_beside_the_stage_may_be_there_before_it(tmp_path: Path) -> None:
    put(tmp_path, "cache/manifest.json")
    open_stage(tmp_path, "memory", {}, {}, beside=[tmp_path / "cache"])
    put(tmp_path, "other/manifest.json")
    with pytest.raises(ExistingOutputError, match="other exists"):
        open_stage(tmp_path, "memory", {}, {}, beside=[tmp_path / "cache"])


def test_nothing_is_written_over_a_file_that_the_stage_has_not_made(tmp_path: Path) -> None:
    stage = begun(tmp_path)
    put(tmp_path, "keys/a.safetensors", "curves.png")
    with pytest.raises(ExistingOutputError, match=r"keys/a\.safetensors exists"):
        stage.write("keys/a.safetensors", {"x": np.zeros(1)})
    with pytest.raises(ExistingOutputError, match=r"curves\.png exists"):
        stage.claim("curves.png")
    assert (tmp_path / "keys" / "a.safetensors").read_text() == (tmp_path / "curves.png").read_text() == "years of work"
    stage.write("b.safetensors", {"x": np.zeros(1)})
    stage.write("b.safetensors", {"x": np.ones(1)})
    assert stage.read("b.safetensors")["x"] == [1]


def test_a_file_that_is_certain_to_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    def look(k: int, fresh: bool = False) -> Stage:
        return open_stage(tmp_path, "test", {}, {"k": k}, ("curves.png",), fresh)

    stage = look(1)
    with closing(stage):
        stage.begin()
    put(tmp_path, "curves.png")
    assert look(1).begun  # recorded: the stage has begun when none was there
    body = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**body, "own": []}))
    for k in (1, 2):
        with pytest.raises(ExistingOutputError, match=r"curves\.png exists"):
            look(k, fresh=True)


def test_a_manifest_of_an_earlier_version_owns_what_its_layout_names(tmp_path: Path) -> None:
    stage = begun(tmp_path)
    stage.write("keys/a.safetensors", {"x": np.zeros(1)})
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_text("{}")
    stage.record(files={"config.json": sha256(tmp_path / "config.json")}, trust={"slope": 1.0})
    body = json.loads((tmp_path / MANIFEST).read_text())
    del body["own"]
    (tmp_path / MANIFEST).write_text(json.dumps(body))
    put(tmp_path, "keys/mine.safetensors", "mine.txt")
    again = open_stage(tmp_path, "test", {"corpus a.txt": "1"}, {"k": 4}, (*LAYOUT, "metrics.jsonl"))
    assert again.manifest["trust"] == {"slope": 1.0}
    with closing(again):
        again.begin()
    redone = open_stage(tmp_path, "test", {"corpus a.txt": "1"}, {"k": 5}, (*LAYOUT, "metrics.jsonl"), fresh=True)
    with closing(redone):
        redone.begin()
    assert names(tmp_path) == ["keys", "keys/mine.safetensors", MANIFEST, "mine.txt"]


def test_an_input_that_nothing_reads_may_have_changed_since_an_earlier_version_recorded_it(tmp_path: Path) -> None:
    old = open_stage(tmp_path, "test", {"teacher config.json": "1", "teacher README.md": "2"}, {})
    with closing(old):
        old.begin()
    old.write("a.safetensors", {"x": np.zeros(1)})
    with pytest.raises(StageError, match=r"made with other inputs: teacher README\.md is gone"):
        open_stage(tmp_path, "test", {"teacher config.json": "1"}, {})
    again = open_stage(tmp_path, "test", {"teacher config.json": "1"}, {}, unread=["teacher README.md"])
    assert again.read("a.safetensors")["x"] == [0]
    with closing(again):
        again.begin()
    again.record(tau=1.0)
    assert again.identity == old.identity


OURS = '{"stage": "test", "inputs": {}, "options": {}, "format": 4, "facts": {}'


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"name": "a web app", "icons": []}', "[" * 100_000),
        *(f'{OURS}, "own": {own}}}' for own in ("7", '"abc"', "[1]", "[null]")),
        OURS.replace('"facts": {}', '"facts": {"files": [1]}') + "}",
        OURS.replace('"inputs": {}', '"inputs": []') + "}",
    ],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_manifest_that_is_not_ours_is_named_and_kept(tmp_path: Path, content: str, fresh: bool) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ExistingOutputError, match=r"manifest\.json exists and is not overwritten"):
        opened(tmp_path, fresh=fresh)
    assert (tmp_path / MANIFEST).read_text() == content


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    begun(tmp_path)
    program = """
import os, signal, sys
from pathlib import Path
from memdec_edge.files import atomic_path
with atomic_path(Path(sys.argv[1]) / "manifest.json"), atomic_path(Path(sys.argv[1]) / "keys" / "00000.safetensors"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=600)
    leftovers = [path for path in tmp_path.rglob(".*") if path.is_file()]
    assert len(leftovers) == 2
    begun(tmp_path)
    assert not any(path.exists() for path in leftovers)


def test_what_another_process_is_writing_in_the_folder_is_no_leftover(tmp_path: Path) -> None:
    begun(tmp_path).write("keys/a.safetensors", {"x": np.zeros(1)})
    with atomic_path(tmp_path / "keys" / "mine.gguf") as part, atomic_path(tmp_path / "memdec-mine.gguf") as other:
        for path in (part, other):
            path.write_text("whole")
        begun(tmp_path)
    assert (tmp_path / "keys" / "mine.gguf").read_text() == (tmp_path / "memdec-mine.gguf").read_text() == "whole"


def test_a_users_dotfiles_are_never_taken_for_leftovers(tmp_path: Path) -> None:
    mine = [".env.template", ".bashrc.original", ".manifest.json.ab_1cdef"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ExistingOutputError):
        opened(tmp_path)
    assert names(tmp_path) == sorted(mine)
    begun(tmp_path / "out")
    for name in mine:
        (tmp_path / name).rename(tmp_path / "out" / name)
    begun(tmp_path / "out", fresh=True, k=9)
    assert names(tmp_path / "out") == sorted([*mine, MANIFEST])


def test_a_folder_that_holds_a_leftover_alone_is_empty(tmp_path: Path) -> None:
    leftover = tmp_path / ".manifest.json.memdec-part-ab_1cdef"
    leftover.write_text("half")
    begun(tmp_path)
    assert names(tmp_path) == [MANIFEST]


def test_a_shard_is_hashed_once_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path).write("a.safetensors", {"x": np.arange(3)})
    stage = opened(tmp_path)
    hashed: list[object] = []
    digest = shards._digest

    def counting(arrays: Arrays, metadata: dict[str, str]) -> str:
        hashed.append(arrays)
        found: str = digest(arrays, metadata)
        return found

    monkeypatch.setattr(shards, "_digest", counting)
    for _ in range(3):
        assert stage.read("a.safetensors")["x"].tolist() == [0, 1, 2]
    assert len(hashed) == 1


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    program = """
import resource, sys
import numpy as np
from pathlib import Path
from memdec_edge.errors import OutputError
from memdec_edge.train.artifacts import open_stage
stage = open_stage(Path(sys.argv[1]), "test", {}, {})
stage.begin()
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    stage.write("a.safetensors", {"x": np.zeros(100_000)})
except OutputError as error:
    print(error)
stage.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=600, check=True
    )
    assert done.stdout.startswith(f"{tmp_path / 'a.safetensors'} could not be written: ")
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]
    assert json.loads((tmp_path / MANIFEST).read_text())["stage"] == "test"
