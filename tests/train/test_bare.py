"""Training where only PyTorch and its kin are installed, as on many GPU servers: no llama.cpp, faiss, C extension."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import tiny_gguf
from tests.support.training import PROGRAM, make_room

MISSING = (
    "llama_cpp", "memdec_edge._native", "gguf", "llguidance", "jinja2", "platformdirs", "faiss", "matplotlib",
    "tensorboard", "pyarrow", "pypdfium2", "selectolax", "mammoth",
)  # fmt: skip
BARE = f"import sys\nsys.modules.update(dict.fromkeys({MISSING!r}))\n" + PROGRAM


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("bare"))


def run(program: str, room: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    command: list[str | Path] = [sys.executable, "-c", program + "sys.exit(run(Path(sys.argv[2])))", room, out]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_a_cache_and_a_memory_are_made_without_llama_cpp(room: Path, tmp_path: Path) -> None:
    program = BARE.replace("steps=120", "steps=4").replace("finetune_teacher=0.0", "finetune_teacher=0.1")
    done = run(program, room, tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "curves.png is not drawn: matplotlib is not installed\n" in done.stderr
    assert (tmp_path / "memory" / "model.safetensors").exists()
    assert not (tmp_path / "memory" / "curves.png").exists()


def test_a_gguf_as_the_teacher_asks_for_llama_cpp(room: Path, tmp_path: Path) -> None:
    teacher = tiny_gguf(room / "teacher.gguf", room / "teacher")
    done = run(BARE.replace('room / "teacher"', 'room / "teacher.gguf"').replace("'gguf', ", ""), room, tmp_path)
    assert (done.returncode, done.stdout) == (
        1,
        f"{teacher}: llama-cpp-python, which reads the text for a GGUF, is not installed; "
        "install it, or give a Hugging Face folder\n",
    )


def test_an_index_asks_for_faiss_before_the_work(room: Path, tmp_path: Path) -> None:
    done = run(BARE.replace("k=6", "k=6, search='hnsw'"), room, tmp_path)
    assert (done.returncode, done.stdout) == (1, "faiss is not installed; pip install 'memdec-edge[train]'\n")
    assert not (tmp_path / "cache" / "keys").exists()
