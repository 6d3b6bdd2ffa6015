"""train/apart.py and the command train: a training in a process of its own, and how it is stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from memdec_edge.errors import MissingFileError, OptionError
from memdec_edge.train import apart, build_cache, build_cache_apart, measure_speed_apart, pipeline, train, train_apart
from tests.support.training import BLOCK, K, cache_options, make_room, recorded, train_options

SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("train"))


def test_a_training_apart_ends_as_one_in_this_process(room: Path, tmp_path: Path) -> None:
    apart_, here = (run(train_options(room, tmp_path / run.__name__)) for run in (train_apart, train))
    assert replace(apart_, path=here.path, seconds=here.seconds) == here
    one, other = (load_file(report.path / "model.safetensors") for report in (apart_, here))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert build_cache_apart(cache_options(room)) == build_cache(cache_options(room))


def test_what_a_training_raises_is_raised_here(room: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        train_apart(train_options(room, tmp_path / "memory", layers=3))
    assert (caught.value.field, caught.value.value, caught.value.exit_code) == ("layers", 3, 2)
    with pytest.raises(MissingFileError, match=r"config\.json: no such file"):
        build_cache_apart(cache_options(room, teacher=tmp_path, out=tmp_path / "cache"))


def test_the_speed_of_a_model_is_measured(room: Path) -> None:
    speed = measure_speed_apart(room / "teacher", BLOCK, 2)
    assert speed.reading > speed.training > 0  # a step reads, goes back and updates
    assert speed.products > 0
    assert 0 < speed.loading < speed.seconds
    assert speed.device == "cpu"
    with pytest.raises(MissingFileError):
        measure_speed_apart(room / "corpus", BLOCK, 2)


def test_threads_wait_passively_unless_they_are_to_spin_or_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*apart.PASSIVE, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(apart, "usable_cpus", lambda: os.cpu_count())
    assert apart.surroundings(spin=False) == {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    assert apart.surroundings(spin=True) == {}
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert apart.surroundings(spin=False) == {"KMP_BLOCKTIME": "0"}
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(apart, "usable_cpus", lambda: 3)
    assert apart.surroundings(spin=True) == {"OMP_NUM_THREADS": "3"}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert apart.surroundings(spin=True) == {}


def test_one_of_several_processes_trains_in_itself(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(pipeline, "train", lambda options: os.getpid())
    assert train_apart(train_options(room, tmp_path)) == os.getpid()


@contextmanager
def training(room: Path, out: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """`memdec-edge train` as a terminal starts it, in the middle of its steps; and the file of its metrics."""
    command: list[str | Path] = [
        sys.executable, "-m", "memdec_edge", "train", "--teacher", room / "teacher", "--corpus", room / "corpus",
        "--out", out, "--k", str(K), "--block", str(BLOCK), "--batch", "2", "--steps", "100000", "--lr", "0.003",
        "--beta", "0.5", "--finetune-teacher", "0", "--save-every", "1000", "--valid-every", "0",
    ]  # fmt: skip
    path, environment = out / "metrics.jsonl", os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 600
        while steps(path) < 5 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        yield process, path


def steps(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_stops_the_command_and_no_finished_step_is_lost(room: Path, tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    with training(room, tmp_path / "memory") as (process, path):
        if name == "SIGTERM":
            process.send_signal(number)
        else:  # from the terminal, to parent and child
            os.killpg(process.pid, number)
        out, err = process.communicate(timeout=600)
    last = "Error: stopped; what was finished is kept: run the same command again to go on"
    assert (process.returncode, out, err.splitlines()[-1]) == (SIGNALS[name], "", last)
    assert 5 <= steps(path) == recorded(tmp_path / "memory") < 100_000


def test_a_training_whose_command_is_killed_saves_its_steps_and_ends(room: Path, tmp_path: Path) -> None:
    with training(room, tmp_path / "memory") as (process, path):
        process.kill()
        process.communicate(timeout=600)  # the streams end with the child, which holds them too
    assert 5 <= steps(path) == recorded(tmp_path / "memory") < 100_000
