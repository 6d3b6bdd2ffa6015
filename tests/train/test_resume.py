"""Killed, interrupted and shared runs end like one that ran through alone, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from memdec_edge.errors import Cancelled, StageError
from memdec_edge.options import CacheOptions
from memdec_edge.train import build_cache, loop, train
from memdec_edge.train.validation import Validation
from tests.support.training import KILLED, ONCE, flip, make_room, metrics, recorded, train_options


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("train"))


def same_shards(one: Path, other: Path) -> None:
    """All safetensors of `one` stand in `other` too, bit for bit."""
    for path in sorted(one.rglob("*.safetensors")):
        theirs, mine = load_file(path), load_file(other / path.relative_to(one))
        assert {name: (a.shape, a.tobytes()) for name, a in mine.items()} == {
            name: (a.shape, a.tobytes()) for name, a in theirs.items()
        }, path.name


def interrupt_validation(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let Ctrl-C come in the middle of one validation."""
    score = Validation.score
    calls: list[int] = []

    def interrupted(self: Validation, model: Any, device: torch.device) -> dict[str, float]:
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return dict(score(self, model, device))

    monkeypatch.setattr(Validation, "score", interrupted)


def test_a_run_that_is_killed_twenty_times_ends_bit_for_bit_like_one_that_is_not(room: Path, tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, room, tmp_path], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    same_shards(straight, broken)
    same_shards(broken, straight)
    for one, other in zip(metrics(broken / "memory"), metrics(straight / "memory"), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert not [path for path in broken.rglob(".*") if path.is_file()]


def test_an_interrupted_training_keeps_what_was_done(room: Path, tmp_path: Path) -> None:
    path = tmp_path / "memory" / "metrics.jsonl"

    def lines() -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", ONCE, room, tmp_path], stdout=subprocess.PIPE, text=True, env=env
    ) as child:
        deadline = time.monotonic() + 600
        while lines() < 10 and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send_signal(signal.SIGINT)
        stdout = child.communicate(timeout=600)[0]
    assert child.returncode == 130
    assert stdout == "stopped; what was finished is kept: run the same command again to go on\n"
    assert 10 <= lines() == recorded(tmp_path / "memory") < 120


def test_two_processes_train_the_memory_that_one_does(room: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    two = tmp_path / "two.py"
    two.write_text(ONCE.replace("accumulate=2", "accumulate=1"))  # as many blocks in a step
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", two]
    env = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.getcwd()}
    for command, out in (([sys.executable, "-c", ONCE], alone), (launch, together)):
        done = subprocess.run([*command, room, out], env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    same_shards(alone / "cache", together / "cache")
    one, other = (metrics(out / "memory") for out in (alone, together))
    assert [line["step"] for line in other] == list(range(1, 121))
    assert other[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-3)
    assert other[-1]["valid_perplexity"] == pytest.approx(one[-1]["valid_perplexity"], rel=0.005)
    assert other[-1]["loss"] < 0.8 * other[0]["loss"]


def test_two_processes_fine_tune_a_teacher_and_one_goes_on_with_their_cache(room: Path, tmp_path: Path) -> None:
    two = tmp_path / "two.py"
    two.write_text(ONCE.replace("finetune_teacher=0.0", "finetune_teacher=0.5").replace("steps=120", "steps=2"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([*launch, two, room, tmp_path], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    weights = tmp_path / "cache" / "teacher" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    report = build_cache(
        CacheOptions(room / "teacher", room / "corpus", tmp_path / "cache", k=6, block=16, finetune_teacher=0.5)
    )
    assert report.gate is not None
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize(("validation", "steps"), [(2, 4), (3, 8), (4, 12)])
def test_an_interrupted_validation_is_done_again_and_no_step_is(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: int, steps: int
) -> None:
    straight = train(train_options(room, tmp_path / "straight", valid_every=4, save_every=50))
    interrupt_validation(monkeypatch, validation)  # the first one is that of the start
    with pytest.raises(Cancelled):
        train(train_options(room, tmp_path / "broken", valid_every=4, save_every=50))
    with safe_open(tmp_path / "broken" / "resume.safetensors", framework="numpy") as state:
        assert int(state.metadata()["step"]) == steps
    broken = train(train_options(room, tmp_path / "broken", valid_every=4, save_every=50))
    assert broken.best_step == straight.best_step
    assert [line["step"] for line in metrics(tmp_path / "broken") if "valid_perplexity" in line] == [4, 8, 12]
    for one, other in zip(metrics(tmp_path / "broken"), metrics(tmp_path / "straight"), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    same_shards(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.parametrize("step", [6, 8, 12])  # validation is due at the last two
def test_a_step_whose_line_an_interrupt_finds_written_is_not_recorded_or_scored_again(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    straight, broken = (train_options(room, tmp_path / name, valid_every=4) for name in ("straight", "broken"))
    train(straight)
    add, score = loop.Metrics.add, Validation.score
    scored: list[int] = []

    def interrupted(self: loop.Metrics, at: int, numbers: dict[str, float]) -> None:
        add(self, at, numbers)
        if at == step:
            signal.raise_signal(signal.SIGINT)

    def counted(self: Validation, model: Any, device: torch.device) -> dict[str, float]:
        scored.append(1)
        return dict(score(self, model, device))

    monkeypatch.setattr(Validation, "score", counted)
    monkeypatch.setattr(loop.Metrics, "add", interrupted)
    with pytest.raises(Cancelled):
        train(broken)
    assert len(metrics(broken.out)) == recorded(broken.out) == step
    monkeypatch.setattr(loop.Metrics, "add", add)
    train(broken)
    assert len(scored) == 4  # at the start and after 4, 8 and 12 steps
    for one, other in zip(metrics(broken.out), metrics(straight.out), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    same_shards(straight.out, broken.out)


def test_best_weights_that_are_gone_or_damaged_stop_a_training_that_goes_on(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = train_options(room, tmp_path / "memory", valid_every=2, save_every=3)
    interrupt_validation(monkeypatch, 3)
    with pytest.raises(Cancelled):
        train(options)
    best = tmp_path / "memory" / "best.safetensors"
    flip(best)
    with pytest.raises(StageError, match=r"best\.safetensors: damaged .* remove that file"):
        train(options)
    best.unlink()
    with pytest.raises(StageError, match=r"best\.safetensors: missing, .*; remove resume\.safetensors too"):
        train(options)
    (tmp_path / "memory" / "resume.safetensors").unlink()
    assert train(options).steps == 12


def test_a_training_that_is_interrupted_while_it_is_published_goes_on_from_its_last_step(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(train_options(room, tmp_path / "straight", save_every=50))
    write = loop.write_checkpoint

    def interrupted(*_: Any) -> None:
        monkeypatch.setattr(loop, "write_checkpoint", write)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_checkpoint", interrupted)
    with pytest.raises(Cancelled):
        train(train_options(room, tmp_path / "broken", save_every=50))
    with safe_open(tmp_path / "broken" / "resume.safetensors", framework="numpy") as state:
        assert int(state.metadata()["step"]) == 12
    train(train_options(room, tmp_path / "broken", save_every=50))
    same_shards(tmp_path / "straight", tmp_path / "broken")
