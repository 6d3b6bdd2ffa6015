"""What a machine or a text cannot give: memory, neighbours, sound numbers in files. Each is named."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from memdec_edge.errors import (
    MemoryLimitError,
    OptionError,
    OutputError,
    StageError,
)
from memdec_edge.train import build_cache, loop, train
from memdec_edge.train.limits import enough_memory
from tests.support.training import ONCE, cache_options, flip, make_room, metrics, own_cache, train_options


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("train"))


@pytest.mark.parametrize(
    ("batch", "accumulate", "smaller"),
    [
        (4096, 1, "what was finished is kept, and `batch` 2048 with `accumulate` 2 goes on with it; "),
        (15, 2, "what was finished is kept, and `batch` 5 with `accumulate` 6 goes on with it; "),
        (4, None, "what was finished is kept, and `batch` 2 goes on with it; "),
        (1, 1, ""),
    ],
)
def test_too_little_memory_proposes_a_smaller_batch(
    room: Path, batch: int, accumulate: int | None, smaller: str
) -> None:
    with pytest.raises(MemoryLimitError) as caught, enough_memory(cache_options(room, batch=batch), accumulate):
        torch.empty(1 << 50)
    assert str(caught.value) == (
        f"out of memory: {batch} blocks of 16 tokens in a pass, 6 neighbours; {smaller}"
        "a smaller `block`, `k` or model needs less" + (", too" if smaller else "")
    )


def test_a_card_that_runs_out_of_memory_loses_no_step_and_the_smaller_batch_goes_on(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(train_options(room, tmp_path / "straight", batch=2))
    gradients = loop.Learner.gradients

    def short(self: loop.Learner, step: int) -> object:
        if step == 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradients(self, step)

    monkeypatch.setattr(loop.Learner, "gradients", short)
    with pytest.raises(MemoryLimitError, match="`batch` 1 with `accumulate` 2 goes on with it"):
        train(train_options(room, tmp_path / "memory", batch=2))
    monkeypatch.setattr(loop.Learner, "gradients", gradients)
    with safe_open(tmp_path / "memory" / "resume.safetensors", framework="numpy") as state:
        assert int(state.metadata()["step"]) == 7
    with pytest.raises(StageError, match="made with `batch` 2, now 1"):
        train(train_options(room, tmp_path / "memory", batch=1))
    report = train(train_options(room, tmp_path / "memory", batch=1, accumulate=2))
    assert (report.steps, report.tokens) == (straight.steps, straight.tokens)
    assert report.valid_perplexity == pytest.approx(straight.valid_perplexity, rel=1e-3)
    lines = [metrics(tmp_path / name) for name in ("memory", "straight")]
    assert [line["step"] for line in lines[0]] == list(range(1, 13))
    assert [line["loss"] for line in lines[0]] == pytest.approx([line["loss"] for line in lines[1]], rel=1e-2)


def test_a_teacher_that_took_no_saved_step_is_fine_tuned_anew_with_a_smaller_batch(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = loop.Learner.gradients

    def short(self: loop.Learner, step: int) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.Learner, "gradients", short)
    options = cache_options(room, out=tmp_path / "cache", finetune_teacher=0.5)
    with pytest.raises(MemoryLimitError, match="`batch` 2 goes on with it"):
        build_cache(options)
    monkeypatch.setattr(loop.Learner, "gradients", gradients)
    assert build_cache(replace(options, batch=2)).train_tokens == 700


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
