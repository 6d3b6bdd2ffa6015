"""Training, reading and searching on an accelerator: rates, and what two changes of a training step would be worth.

    python benchmarks/device_step.py [--seconds 6] [--keys 1600000] [--out DIR]

A model of SmolLM2-135M's shape with random weights on random text: rates depend on shapes alone. The step is that of
train/step.py on 32 x 256 tokens, with 30 to 60 targets at a position:

    as it is    the body is a CUDA graph (train/graph.py)
    plain       the CPU starts each kernel
    compiled    plain, and the blocks go through torch.compile; transformers looks for no packed sequences

Ways take turns, each for some seconds after its warm-up. "busy" is the share of a step in which kernels run, and
OUT/kernels.txt says which ones take longest. Reading is that of a teacher with its 24 likeliest tokens.
Search is exact, for 16,384 queries among --keys keys of 576 dimensions. The last line is one JSON object.
"""

import argparse
import gc
import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers
from torch_scores import rate
from train_step import PAIRS, SMOLLM2

from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.train.feed import Data
from memdec_edge.train.knn.cache import OWN
from memdec_edge.train.knn.exact import Exact
from memdec_edge.train.loop import accelerator
from memdec_edge.train.models import Source
from memdec_edge.train.step import Learner
from memdec_edge.train.targets import Support
from memdec_edge.train.teacher import TorchTeacher
from memdec_edge.train.validation import Validation

BLOCK, BATCH, ROUNDS = 256, 32, 3
WAYS = ("as it is", "plain", "compiled")


class RandomTargets:
    """Targets of every position, for a step to be timed."""

    def __init__(self, vocabulary: int, positions: int) -> None:
        random = np.random.default_rng(0)
        self._counts = random.integers(PAIRS[0], PAIRS[1], positions)
        self._ids = torch.from_numpy(random.integers(0, vocabulary, positions * PAIRS[1]))

    def rows(self, starts: list[int], length: int) -> Support:
        """Those of some stretches of positions."""
        counts = torch.from_numpy(np.concatenate([self._counts[start : start + length] for start in starts]))
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        return Support(offsets, self._ids[: int(offsets[-1])], torch.repeat_interleave(1 / counts.float(), counts))


def make_model() -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(SMOLLM2).eval()


def learner(way: str, tokens: np.ndarray, folder: Path) -> Learner:
    model = make_model()
    if way == "compiled":
        transformers.AttentionInterface.register("unasked", transformers.AttentionInterface()["sdpa"])
        model.set_attn_implementation("unasked")
        for block in model.model.layers:
            block.compile()
    options = TrainOptions(CacheOptions(folder, folder, folder, block=BLOCK, batch=BATCH), folder, beta=0.5)
    targets: Any = RandomTargets(SMOLLM2.vocab_size, len(tokens))
    found = Learner(options, model, Data(tokens, targets, Validation(tokens, BLOCK), BLOCK), accelerator())
    if way != "as it is":
        found._objective.body.release()
    return found


def steps(each: Learner, seconds: float) -> float:
    """Tokens a second, over so many seconds; a step's losses are asked for when the next one runs."""
    began, done, before = perf_counter(), 0, None
    while perf_counter() - began < seconds:
        found = each.gradients(done)
        if before:
            before.known()
        each.update(1e-4)
        before, done = found, done + 1
    torch.cuda.synchronize()
    return done * BATCH * BLOCK / (perf_counter() - began)


def busy(each: Learner, out: Path) -> float:
    """Share of the time of some steps in which kernels ran; the longest kernels are written down."""
    began = perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        steps(each, 0.5)
        seconds = perf_counter() - began
    table = profile.key_averages()
    (out / "kernels.txt").write_text(
        table.table(sort_by="self_device_time_total", row_limit=25, max_name_column_width=90)
    )
    return float(sum(row.self_device_time_total for row in table) / 1e6 / seconds)


def training(tokens: np.ndarray, seconds: float, folder: Path, out: Path) -> dict[str, float]:
    """Tokens a second of each way: medians of rounds in which the ways take turns."""
    learners = {}
    for way in WAYS:
        began = perf_counter()
        try:
            learners[way] = learner(way, tokens, folder)
            steps(learners[way], 0.5)
        except Exception as error:  # a compiler that the machine lacks is a result, too
            print(f"{way}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
            learners.pop(way, None)
        print(f"{way}: ready after {perf_counter() - began:.1f} s", flush=True)
    found: dict[str, list[float]] = {way: [] for way in learners}
    for _ in range(ROUNDS):
        for way, each in learners.items():
            found[way].append(steps(each, seconds / ROUNDS))
    shares = {f"{way}, busy": busy(each, out) for way, each in reversed(learners.items())}
    for each in learners.values():
        each.close()
    return {way: median(rates) for way, rates in found.items()} | shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6, help="of steps, for each way")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--keys", type=int, default=1_600_000)
    arguments = parser.parse_args()
    device, random = accelerator().device, np.random.default_rng(0)
    tokens = random.integers(0, SMOLLM2.vocab_size, 500_000, dtype=np.uint16)
    with TemporaryDirectory() as folder:
        found = {"training": training(tokens, arguments.seconds, Path(folder), arguments.out)}
    gc.collect()
    torch.cuda.empty_cache()
    teacher = TorchTeacher(Source(Path(), "random", make_model(), None), "mlp_input", device)
    blocks = range(65_536 // BLOCK)
    read = partial(teacher.read, tokens, blocks, BLOCK, BATCH, lambda count: None, most=OWN)
    found["reading"] = {"positions a second": rate(read, len(blocks) * BLOCK)}
    keys = random.standard_normal((arguments.keys, 24), np.float32) @ random.standard_normal((24, 576), np.float32)
    shards = [keys.astype(np.float16)]
    searcher, queries = Exact(shards, device), torch.from_numpy(shards[0][:16_384]).to(device)
    found["search"] = {"queries a second": rate(partial(searcher.search, queries, 1024, 0), len(queries))}
    for name, rates in found.items():
        print(name, ", ".join(f"{way}: {value:,.6g}" for way, value in rates.items()), flush=True)
    print(json.dumps({"benchmark": "device_step", "device": torch.cuda.get_device_name(), "found": found}))


if __name__ == "__main__":
    main()
