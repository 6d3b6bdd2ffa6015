"""Killed, interrupted and shared runs end like one that ran through alone, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.training import PROGRAM, make_room, metrics


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("train"))


def start(room: Path, out: Path) -> subprocess.Popen[str]:
    env = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(room), str(out)], stdout=subprocess.PIPE, text=True, env=env,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def interrupt(room: Path, out: Path, when: Callable[[], bool], what: signal.Signals) -> tuple[int, str]:
    """Start the program, send it `what` when `when()`; its exit code and stdout."""
    with start(room, out) as child:
        deadline = time.monotonic() + 120
        while not when() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send_signal(what)
        stdout = child.communicate(timeout=120)[0]
    return child.returncode, stdout


def test_killed_and_interrupted_runs_end_bit_for_bit_like_one_that_was_not(room: Path, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    with start(room, straight) as child:
        assert child.communicate(timeout=240)[0] == ""
    assert child.returncode == 0

    def shards() -> int:
        return len(list(broken.glob("cache/targets/*.safetensors")))

    def lines() -> int:
        path = broken / "memory" / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    random_ = random.Random(int(time.time()))
    wanted = random_.randint(1, 5)
    assert interrupt(room, broken, lambda: shards() >= wanted, signal.SIGKILL)[0] == -signal.SIGKILL
    assert shards() > 0
    first, second = random_.randint(5, 40), random_.randint(45, 60)
    assert interrupt(room, broken, lambda: lines() >= first, signal.SIGKILL)[0] == -signal.SIGKILL
    code, stdout = interrupt(room, broken, lambda: lines() >= second, signal.SIGINT)
    assert (code, stdout) == (130, "stopped; what was finished is kept: run the same command again to go on\n")
    stopped_at = lines()
    assert second <= stopped_at < 120
    with start(room, broken) as child:
        assert child.communicate(timeout=240)[0] == ""
    assert child.returncode == 0

    for path in sorted(straight.rglob("*.safetensors")):
        theirs, mine = load_file(path), load_file(broken / path.relative_to(straight))
        assert {name: (a.shape, a.tobytes()) for name, a in mine.items()} == {
            name: (a.shape, a.tobytes()) for name, a in theirs.items()
        }, path.name
    for one, other in zip(metrics(broken / "memory"), metrics(straight / "memory"), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert not [path for path in broken.rglob(".*") if path.is_file()]


def test_two_processes_share_the_shards_and_train_one_memory(room: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("steps=120", "steps=3"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command, out in (([sys.executable], alone), (launch, together)):
        env = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.getcwd()}
        subprocess.run([*command, program, room, out], env=env, check=True, capture_output=True, timeout=240)
    for path in sorted(alone.glob("cache/*/*.safetensors")):
        theirs, mine = load_file(path), load_file(together / path.relative_to(alone))
        assert all(np.array_equal(mine[name], theirs[name]) for name in theirs), path.name
    one, two = (metrics(out / "memory") for out in (alone, together))
    assert [line["step"] for line in two] == [1, 2, 3]
    assert two[0]["loss"] != one[0]["loss"]  # twice the blocks
    assert (together / "memory" / "model.safetensors").exists()
