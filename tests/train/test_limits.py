"""What a machine or a text cannot give: memory, neighbours, sound numbers in files. Each is named."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from memdec_edge.errors import (
    MemoryLimitError,
    OptionError,
    OutputError,
    StageError,
)
from memdec_edge.train import build_cache, train
from memdec_edge.train.knn.build import enough_memory
from tests.support.training import ONCE, cache_options, flip, make_room, own_cache, train_options


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("train"))


def test_too_little_memory_names_what_to_lower(room: Path) -> None:
    with pytest.raises(MemoryLimitError) as caught, enough_memory(cache_options(room, batch=4096)):
        torch.empty(1 << 50)
    assert str(caught.value) == (
        "out of memory: 4096 blocks of 16 tokens in a pass, 6 neighbours; a smaller `batch` (with `accumulate`), "
        "`block`, `k` or model needs less"
    )


def test_without_a_retriever_neither_k_nor_a_temperature_is_asked_for(room: Path, tmp_path: Path) -> None:
    cache = cache_options(room, out=tmp_path / "cache", k=100_000)
    train(train_options(room, tmp_path / "memory", cache=cache, beta=0.0, steps=1))
    with pytest.raises(OptionError, match="k is 100000: the datastore has 688 keys"):
        train(train_options(room, tmp_path / "other", cache=cache, beta=0.5, steps=1))


@pytest.mark.parametrize("name", ["keys", "targets"])
def test_a_flipped_byte_in_a_finished_cache_is_noticed_when_the_cache_is_asked_for(
    room: Path, tmp_path: Path, name: str
) -> None:
    options = own_cache(room, tmp_path)
    flip(options.out / name / "00000.safetensors")
    with pytest.raises(StageError, match=rf"{name}/00000\.safetensors: damaged"):
        build_cache(options)


def test_fresh_with_another_rate_redoes_the_memory_and_keeps_the_cache_and_what_is_not_ours(
    room: Path, tmp_path: Path
) -> None:
    cache = own_cache(room, tmp_path)
    out = tmp_path / "memory"
    train(train_options(room, out, cache=cache))
    (out / "memdec-mine.gguf").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in cache.out.rglob("*") if path.is_file()}
    first = load_file(out / "model.safetensors")["lm_head.weight"]
    train(train_options(room, out, cache=cache, fresh=True, lr=1e-4))
    assert {path: path.stat().st_mtime_ns for path in cache.out.rglob("*") if path.is_file()} == before
    assert not np.array_equal(load_file(out / "model.safetensors")["lm_head.weight"], first)
    assert (out / "memdec-mine.gguf").read_text() == "mine"
    flip(cache.out / "keys" / "00000.safetensors")
    flip(out / "model.safetensors")
    second = train(train_options(room, out, cache=cache, fresh=True, lr=1e-4))
    assert replace(train(train_options(room, out, cache=cache, lr=1e-4)), seconds=second.seconds) == second


def test_a_full_disk_is_an_output_error(room: Path, tmp_path: Path) -> None:
    program = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n" + ONCE
    done = subprocess.run(
        [sys.executable, "-c", program, str(room), str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == OutputError("", "").exit_code
    assert done.stdout.startswith(f"{tmp_path / 'memory' / 'best.safetensors'} could not be written: ")
    assert done.stdout.count("\n") == 1
    assert [path.name for path in (tmp_path / "memory").glob("*safetensors*")] == ["base.safetensors"]


def test_a_missing_extra_is_named() -> None:
    program = "import sys; sys.modules['torch'] = None\nimport memdec_edge.train"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "MissingExtraError: torch is not installed; pip install 'memdec-edge[train]'" in done.stderr
