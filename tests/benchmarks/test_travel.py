"""benchmarks/travel.py: what is packed comes out as it was, on a machine with neither our package nor llama.cpp."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.tiny import tiny_checkpoint, tiny_gguf
from tests.support.training import make_room, words

TRAVEL = Path(__file__).resolve().parents[2] / "benchmarks" / "travel.py"
# What a bare machine lacks: our package is not on its path, nor are these.
BARE = "import runpy, sys\nsys.modules.update(dict.fromkeys(['llama_cpp', 'faiss', 'llguidance', 'jinja2']))\n"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_room(tmp_path_factory.mktemp("travel"))
    gguf = tiny_gguf(folder / "base.gguf", folder / "teacher")
    (folder / "general.txt").write_text("\n\n".join(words(3, 9)))
    texts = [f"notes={folder / 'corpus'}", f"general={folder / 'general.txt'}"]
    command: list[str | Path] = [sys.executable, TRAVEL, "pack", "--base", gguf, "--texts", *texts, "--out"]
    subprocess.run([*command, folder / "out", "--megabytes", "1.2"], check=True, capture_output=True)
    return folder


def unpack(*folders: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    script = BARE + f"sys.argv[0] = {str(folders[0] / 'travel.py')!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    command: list[str | Path] = [sys.executable, "-c", script, "unpack", *folders, "--out", out]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def test_what_is_packed_comes_out_as_it_was(packed: Path, tmp_path: Path) -> None:
    pieces = sorted((packed / "out").glob("travel.0*"))
    assert len(pieces) > 1
    assert max(piece.stat().st_size for piece in pieces) <= 1_200_000
    for number, piece in enumerate(pieces):  # sent one by one
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        shutil.copy(piece, tmp_path / str(number % 2))
    for name in ("travel.py", "travel.json"):
        shutil.copy(packed / "out" / name, tmp_path / "0")
    done = unpack(tmp_path / "0", tmp_path / "1", out=tmp_path / "here")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'here'}: base, base.gguf, ids, src\n"), done.stderr
    ours = np.load(packed / "cache" / "tokens" / "train.npy")  # the first 700 of the text
    np.testing.assert_array_equal(np.load(tmp_path / "here" / "ids" / "notes" / "train.npy")[:700], ours)
    assert json.loads((tmp_path / "here" / "ids" / "general" / "test.json").read_text())["n_vocab"] > 0
    one, other = (load_file(path / "model.safetensors") for path in (packed / "teacher", tmp_path / "here" / "base"))
    assert one.keys() == other.keys()
    assert all(np.abs(one[name] - other[name]).max() < 1e-3 * np.abs(one[name]).max() for name in one)


def test_a_piece_that_is_missing_or_damaged_is_named_and_nothing_is_left(packed: Path, tmp_path: Path) -> None:
    here = tmp_path / "pieces"
    shutil.copytree(packed / "out", here)
    piece = here / "travel.001"
    content = piece.read_bytes()
    piece.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = unpack(here, out=tmp_path / "here")
    assert (done.returncode, done.stderr) == (
        1, f"Error: {piece}: its digest is not the one in {here / 'travel.json'}; send it again\n",
    )  # fmt: skip
    piece.unlink()
    done = unpack(here, out=tmp_path / "here")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: travel.001: missing, of ")
    (here / "travel.json").write_text("{")
    assert unpack(here, out=tmp_path / "here").stderr == f"Error: {here / 'travel.json'}: damaged; send it again\n"
    (here / "travel.json").unlink()
    assert "travel.json: no such file; name the folder that holds it" in unpack(here, out=tmp_path / "here").stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces"]


def test_what_exists_is_not_overwritten(packed: Path, tmp_path: Path) -> None:
    assert "exists and is not overwritten" in unpack(packed / "out", out=tmp_path).stderr
    gguf = tiny_gguf(tmp_path / "a.gguf", tiny_checkpoint(tmp_path / "a"))
    command: list[str | Path] = [sys.executable, TRAVEL, "pack", "--base", gguf, "--texts", f"a={packed / 'corpus'}"]
    done = subprocess.run([*command, "--out", packed / "out"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "travel.json exists" in done.stderr
