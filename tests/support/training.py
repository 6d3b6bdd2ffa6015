"""What the tests of training share: a tiny teacher, a corpus, a finished cache; and a program to kill."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.train import build_cache
from tests.support.tiny import TEXT, tiny_checkpoint

BLOCK, K = 16, 6
PLAIN: dict[str, Any] = {"finetune_teacher": 0.0, "target": "knn"}  # the quick way to a cache


def words(count: int, seed: int) -> list[str]:
    """Documents of shuffled words of TEXT: the tokenizer knows them."""
    random_ = random.Random(seed)
    return [" ".join(random_.choices(TEXT.split()[:60], k=30)) for _ in range(count)]


def make_room(folder: Path) -> Path:
    """A teacher, a corpus with splits, a finished cache."""
    tiny_checkpoint(folder / "teacher", tied=False)
    for split, count in (("train", 20), ("valid", 6), ("test", 2)):
        (folder / "corpus").mkdir(exist_ok=True)
        lines = (json.dumps({"text": text}) + "\n" for text in words(count, len(split)))
        (folder / "corpus" / f"{split}.jsonl").write_text("".join(lines))
    build_cache(cache_options(folder))
    return folder


def cache_options(folder: Path, **changes: Any) -> CacheOptions:
    options = CacheOptions(folder / "teacher", folder / "corpus", folder / "cache", k=K, block=BLOCK, max_tokens=700)
    return replace(options, **{**PLAIN, **changes})


def train_options(room: Path, out: Path, **changes: Any) -> TrainOptions:
    shared = {"batch": 2} | {name: changes.pop(name) for name in ("batch", "seed", "fresh") if name in changes}
    cache = replace(changes.pop("cache", cache_options(room)), **shared)
    return replace(TrainOptions(cache, out, beta=0.5, lr=3e-3, steps=12, save_every=5), **changes)


def own_cache(room: Path, tmp_path: Path) -> CacheOptions:
    """A copy of the finished cache, to be damaged."""
    shutil.copytree(room / "cache", tmp_path / "cache")
    return cache_options(room, out=tmp_path / "cache")


def flip(path: Path) -> None:
    """Change the last byte of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def recorded(out: Path) -> int:
    """Steps of the saved state that have a line in the metrics; one whose validation is to come has none yet."""
    with safe_open(out / "resume.safetensors", framework="numpy") as state:
        found = state.metadata()
        return int(found["step"]) - bool(json.loads(found["line"]))


# argv: room, output folder. run() caches and trains in a folder, prints a typed error and returns the exit code.
PROGRAM = """
import sys
from pathlib import Path
from memdec_edge.errors import MemdecError
from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.train import train
from memdec_edge.train.knn import cache
cache.SHARD_POSITIONS = 64
def run(out):
    room = Path(sys.argv[1])
    data = room / "teacher", room / "corpus", out / "cache"
    options = CacheOptions(*data, k=6, block=16, batch=2, finetune_teacher=0.0)
    try:
        every = {"save_every": 7, "valid_every": 11}
        train(TrainOptions(options, out / "memory", beta=0.5, lr=3e-3, steps=120, accumulate=2, **every))
    except MemdecError as error:
        print(error)
        return error.exit_code
    return 0
"""
ONCE = PROGRAM + "sys.exit(run(Path(sys.argv[2])))"

# Each life of a run is a fork of this process, in which the libraries are loaded: it takes a second and not ten. One
# run goes through, then another is killed twenty times at random moments, spread over the time that the first one took.
KILLED = (
    PROGRAM.replace("finetune_teacher=0.0", "finetune_teacher=0.5, search='ivfpq'")  # all stages that there are
    + """
import os, random, signal, time
def live(out, seconds=None):
    child = os.fork()
    if child == 0:
        os._exit(run(out))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]
straight, broken = (Path(sys.argv[2]) / name for name in ("straight", "broken"))
began = time.monotonic()
assert live(straight) == 0
seconds = time.monotonic() - began
statuses = [live(broken, random.uniform(0, seconds / 14)) for _ in range(20)]
assert statuses == [signal.SIGKILL] * 20, statuses
assert live(broken) == 0
"""
)
