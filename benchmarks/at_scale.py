"""Does imitating a retriever pay, and from how much text on? Memories against controls, at growing numbers of tokens.

    python benchmarks/at_scale.py --teacher DIR --ids DIR --out DIR [--sizes 1600000 400000 100000 25000]
    python benchmarks/at_scale.py --out DIR --figure

DIR of --ids holds folders of token ids, as benchmarks/travel.py makes them: licences and medicine (train.npy,
valid.npy, test.npy) and general (test.npy). A cell is one training:

    control   plain fine-tuning (beta 0)
    memory    imitates a fine-tuned teacher and its retriever (the target knn-lm)
    knn       imitates the retriever of the teacher as it is (2508.09874)
    ngram     imitates the longest match in the other documents (benchmarks/ngram_target.py)

All cells of a size take the same steps on the same blocks in the same order, and are validated after each epoch; the
best epoch counts. The order is that of ORDER: what matters most comes first. OUT/at_scale.csv gets a line as soon as a
cell is done, and a run that is cut and started again goes on with the next cell. Where memory runs out, a cell is tried
again with half of the batch and twice the passes, which is the same training.

Only PyTorch, transformers, accelerate, safetensors, rich and typer are needed, and matplotlib for the figure: gain over
the control against tokens, with paired standard errors. Figures are of the test split, lambda of the validation split.
The last line is one JSON object.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from ngram_target import Ngrams
from provenance import metrics
from scale_table import QUANTILES, draw, read_rows, write_rows
from torch_scores import (
    IndexVoice,
    Logs,
    Text,
    best_lambda,
    by_distance,
    gain,
    mixed,
    online,
    paired_error,
    perplexity,
    rate,
    whole_blocks,
)  # fmt: skip

from memdec_edge.errors import MemdecError, MemoryLimitError
from memdec_edge.files import atomic_path
from memdec_edge.mixture.kernels import MISSING
from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.options.fields import INT_MAX
from memdec_edge.train.artifacts import open_stage
from memdec_edge.train.feed import Data
from memdec_edge.train.knn.build import fill_cache
from memdec_edge.train.knn.cache import OWN, Cache
from memdec_edge.train.knn.fit import open_searcher
from memdec_edge.train.limits import enough_memory
from memdec_edge.train.loop import LAYOUT, Pace, accelerator, fit, settings
from memdec_edge.train.models import load_source
from memdec_edge.train.targets import Targets
from memdec_edge.train.teacher import TorchTeacher, n_blocks
from memdec_edge.train.token_files import read_ids
from memdec_edge.train.validation import Validation

SIZES = (1_600_000, 400_000, 100_000, 25_000)
POSITIONS = {"valid": 8_192, "test": 65_536, "general": 16_384}
PROBED = {"read": 65_536, "search": 16_384}  # positions on which rates are measured
T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """One training."""

    corpus: str
    tokens: int
    seed: int
    way: str

    @property
    def name(self) -> str:
        return f"{self.corpus}-{self.tokens}-{self.seed}-{self.way}"


def cells(sizes: list[int], corpora: list[str], seeds: list[int]) -> Iterator[Cell]:
    """All cells, what matters most first: pairs from the largest size down, other targets, other texts, other seeds."""
    middle = sizes[min(1, len(sizes) - 1)]
    for number, (seed, corpus) in enumerate((seed, corpus) for seed in seeds for corpus in corpora):
        for size in sizes:
            yield from (Cell(corpus, size, seed, way) for way in ("control", "memory"))
        if number == 0:
            yield from (Cell(corpus, middle, seed, way) for way in ("knn", "ngram"))


class Bench:
    """Texts, models and caches, each loaded or made once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, arguments.out
        self.processes = accelerator()
        self.device = self.processes.device
        self._texts: dict[tuple[str, str], Text] = {}
        self._indexes: dict[tuple[str, int], IndexVoice] = {}

    @cached_property
    def source(self) -> Any:
        return load_source(self.arguments.teacher)

    @cached_property
    def eos(self) -> int:
        """What ends each document of the ids, the last one included."""
        return int(read_ids(self.arguments.ids / "general" / "test.npy", self.arguments.teacher)[-1])

    def text(self, corpus: str, split: str) -> Text:
        """What is scored of a split; of general text whatever the corpus is."""
        folder, name = ("general", "test") if split == "general" else (corpus, split)
        if (folder, name) not in self._texts:
            tokens = read_ids(self.arguments.ids / folder / f"{name}.npy", self.arguments.teacher)
            self._texts[folder, name] = Text.of(tokens, self.arguments.block, POSITIONS[split])
        return self._texts[folder, name]

    def index(self, cell: Cell, cache: Cache) -> IndexVoice:
        """The training tokens as an index, and what it says of the test split."""
        if (cell.corpus, cell.tokens) not in self._indexes:
            train, valid = (np.asarray(cache.tokens(split)) for split in ("train", "valid"))
            self._indexes = {
                (cell.corpus, cell.tokens): IndexVoice(train, valid, self.eos, self.text(cell.corpus, "test"))
            }
        return self._indexes[cell.corpus, cell.tokens]

    def teacher(self, cache: Cache) -> TorchTeacher:
        """That of a cache, fine-tuned or not."""
        source = load_source(cache.teacher) if cache.finetuned else self.source
        return TorchTeacher(source, cache.options.key, self.device)

    def has(self, cell: Cell) -> bool:
        """Whether the corpus has so many training tokens."""
        file = self.arguments.ids / cell.corpus / "train.npy"
        return file.is_file() and len(np.load(file, mmap_mode="r")) > cell.tokens

    def options(self, cell: Cell, batch: int) -> CacheOptions:
        """The cache that a cell learns from; control, memory and ngram share one."""
        arguments, plain = self.arguments, cell.way == "knn"
        folder = self.out / "caches" / f"{cell.corpus}-{cell.tokens}-{cell.seed}{'-plain' if plain else ''}"
        return CacheOptions(
            arguments.teacher, arguments.ids / cell.corpus, folder, block=arguments.block, batch=batch,
            finetune_teacher=0.0 if plain else arguments.teacher_epochs, target="knn" if plain else "knn-lm",
            max_tokens=cell.tokens + 1, k=min(arguments.k, cell.tokens // arguments.block * arguments.block - 1),
            seed=cell.seed,
        )  # fmt: skip

    def logs(self, name: str, corpus: str, model: Callable[[], Any], batch: int) -> dict[str, Logs]:
        """Log-probs of a model on the splits, kept on disk: those of base and controls are asked for again."""
        path = self.out / "scores" / f"{name}.npz"
        if not path.is_file():
            teacher = TorchTeacher(model(), "hidden", self.device)
            reads = {split: self.text(corpus, split).read(teacher, batch, f"{split} text") for split in POSITIONS}
            with atomic_path(path) as part, part.open("wb") as file:
                np.savez(file, **{split: read.logprobs for split, read in reads.items()})
        with np.load(path) as arrays:
            return {split: arrays[split].astype(np.float64) for split in POSITIONS}

    def base(self, corpus: str, batch: int) -> dict[str, Logs]:
        return self.logs(f"base-{corpus}-{self.arguments.block}", corpus, lambda: self.source, batch)


def batch_of(tokens: int) -> int:
    """Blocks of a step: 4 at 25,000 tokens, twice as many for four times the text."""
    return int(4 * 2 ** max(0, round(np.log2(max(tokens, 1) / 25_000) / 2)))


def with_less(batch: int, options: CacheOptions, work: Callable[[int, int], T]) -> T:
    """What work(batch, passes) gives; where memory runs out, with a smaller batch and more passes."""
    passes = 1
    while True:
        try:
            with enough_memory(replace(options, batch=batch), passes):
                return work(batch, passes)
        except MemoryLimitError as error:
            if batch == 1:
                raise
            print(error, file=sys.stderr)
            batch, passes = batch // 2, passes * 2


def make(bench: Bench, cell: Cell, batch: int, passes: int) -> dict[str, Any]:
    """Train a cell, score it, and return its line."""
    options, began = bench.options(cell, batch), time.monotonic()
    cache, retrieve = Cache(options), cell.way in ("memory", "knn")
    fill_cache(cache, bench.processes, bench.source, retrieve=retrieve, pace=Pace(passes, INT_MAX))
    cached = time.monotonic() - began
    base = bench.base(cell.corpus, batch)
    training = TrainOptions(
        options, bench.out / "cells" / cell.name, epochs=bench.arguments.epochs, lr=bench.arguments.lr,
        beta=0.0 if cell.way == "control" else bench.arguments.beta, accumulate=passes,
        save_every=INT_MAX, valid_every=INT_MAX,  # an epoch's end is validated in any case
    )  # fmt: skip
    began = time.monotonic()
    report = learn(bench, cell, cache, training, base["valid"])
    trained = time.monotonic() - began
    logs = bench.logs(cell.name, cell.corpus, lambda: load_source(training.out), batch)
    per_step = batch * passes * options.block
    seconds = [line["seconds"] for line in metrics(training.out)]
    line: dict[str, Any] = {"cell": cell.name, **asdict(cell), "steps": report["steps"]}
    epoch = n_blocks(cache.tokens("train"), options.block) * options.block
    line |= {"best_epoch": report["best_step"] * per_step / epoch}
    teacher = bench.teacher(cache) if retrieve else None
    line |= compare(bench, cell, cache, base, logs, teacher)
    line |= {"train_tps": per_step / median(seconds[len(seconds) // 2 :])}
    line |= rates(bench, cache, teacher) if teacher else {}
    line |= {"cache_seconds": cached, "train_seconds": trained, "batch": batch, "peak_gb": peak()}
    return line | {"device": torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"}


def learn(bench: Bench, cell: Cell, cache: Cache, training: TrainOptions, base: Logs) -> dict[str, Any]:
    """Train the memory of a cell, or finish it; what the training recorded of its end."""
    train, valid, block = cache.tokens("train"), cache.tokens("valid"), training.cache.block
    validation = Validation(valid, block, torch.from_numpy(-base.astype(np.float32)))
    targets: Targets | None = None
    if cell.way == "ngram":
        targets = Ngrams(np.asarray(train), np.asarray(valid), bench.eos, n_blocks(train, block) * block)
    elif cell.way != "control":
        targets = cache.targets()
    chosen = settings(training, bench.processes.num_processes) | {"imitates": cell.way}
    inputs = {"the kNN cache": cache.stage.identity}
    with closing(open_stage(training.out, "memory", inputs, chosen, LAYOUT)) as stage:
        fit(training, bench.source, Data(train, targets, validation, block), stage, bench.processes)
        stage.reload()
        found: dict[str, Any] = stage.manifest["finished"]
        return found


def compare(
    bench: Bench, cell: Cell, cache: Cache, base: dict[str, Logs], logs: dict[str, Logs], teacher: TorchTeacher | None
) -> dict[str, Any]:
    """Perplexities, and the gain over the control where that is done."""
    share, index = best_lambda(logs["valid"], base["valid"]), bench.index(cell, cache)
    fixed = {split: mixed(logs[split], base[split], share) for split in ("test", "general")}
    follows = {split: online(logs[split], base[split]) for split in ("test", "general")}
    found = {
        "lambda": share, "base": perplexity(base["test"]), "alone": perplexity(logs["test"]),
        "fixed": perplexity(fixed["test"]), "online": perplexity(follows["test"]),
        "index": perplexity(index.online(base["test"])),
        "memory_and_index": perplexity(index.online(base["test"], logs["test"])),
        "general_base": perplexity(base["general"]), "general_fixed": perplexity(fixed["general"]),
        "general_online": perplexity(follows["general"]),
    }  # fmt: skip
    control = replace(cell, way="control")
    if cell.way == "control" or not (bench.out / "scores" / f"{control.name}.npz").is_file():
        return found
    rival = bench.logs(control.name, cell.corpus, lambda: load_source(bench.out / "cells" / control.name), 4)
    theirs = mixed(rival["test"], base["test"], best_lambda(rival["valid"], base["valid"]))
    block = bench.arguments.block
    found |= {"gain": gain(fixed["test"], theirs), "gain_error": 100 * paired_error(fixed["test"], theirs, block)}
    if teacher:
        keys = bench.text(cell.corpus, "test").read(teacher, cache.options.batch, "keys").keys
        nearest = open_searcher(cache, bench.device).search(torch.from_numpy(keys), 1).distances[:, 0].cpu().numpy()
        gains = by_distance(nearest, fixed["test"], theirs, QUANTILES)
        found |= {f"gain_{part}": value for part, value in enumerate(gains, 1)}
    return found


def rates(bench: Bench, cache: Cache, teacher: TorchTeacher) -> dict[str, float]:
    """Tokens a second that the teacher reads, and queries a second that are searched."""
    options, tokens = cache.options, np.asarray(cache.tokens("train"))
    blocks, most = whole_blocks(tokens, options.block, PROBED["read"]), OWN if options.target == "knn-lm" else 0
    read = partial(teacher.read, tokens, blocks, options.block, options.batch, lambda count: None, most=most)
    keys = torch.from_numpy(read().keys)
    queries, searcher = keys[: PROBED["search"]].to(bench.device), open_searcher(cache, bench.device)
    search = partial(searcher.search, queries, cache.k, 0)
    return {"read_tps": rate(read, len(keys), runs=1), "search_qps": rate(search, len(queries))}


def peak() -> float:
    """GB of the card that were taken at most since the last call, or of this process since its start."""
    if torch.cuda.is_available():
        taken = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return taken / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def run(bench: Bench, path: Path) -> None:
    """All cells that the CSV does not have yet; each is in it as soon as it is done."""
    arguments, rows = bench.arguments, list[dict[str, Any]](read_rows(path))
    done = {row["cell"] for row in rows}
    for cell in cells(sorted(arguments.sizes, reverse=True), arguments.corpora, arguments.seeds):
        if cell.name in done:
            continue
        if not bench.has(cell):
            print(f"{cell.name}: the corpus has no {cell.tokens:,} training tokens", file=sys.stderr)
            continue
        batch, began = arguments.batch or batch_of(cell.tokens), time.monotonic()
        line = with_less(batch, bench.options(cell, batch), partial(make, bench, cell))
        rows.append(line)
        write_rows(path, rows)
        wanted = ("base", "fixed", "online", "gain", "gain_error", "read_tps", "search_qps", "train_tps")
        shown = ", ".join(f"{name} {line[name]:.5g}" for name in wanted if name in line)
        print(f"{cell.name}: {shown}; {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="Hugging Face folder")
    parser.add_argument("--ids", type=Path)
    parser.add_argument("--figure", action="store_true", help="draw the figure of OUT/at_scale.csv, and train nothing")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--corpora", nargs="+", default=["licences", "medicine"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--teacher-epochs", type=float, default=2)
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--batch", type=int, default=0, help="blocks of a step; 0: more for more text")
    arguments = parser.parse_args()
    path = arguments.out / "at_scale.csv"
    if not arguments.figure:
        if not arguments.teacher or not arguments.ids:
            parser.error("--teacher and --ids are needed")
        if MISSING:
            print(f"indexes are searched by NumPy, which takes longer ({MISSING})", file=sys.stderr)
        try:
            run(Bench(arguments), path)
        except MemdecError as error:
            sys.exit(f"Error: {error}")
    try:
        draw(read_rows(path), arguments.out / "at_scale.png")
    except ImportError:
        print("no figure: matplotlib is not installed; draw it elsewhere with --figure", file=sys.stderr)
    shown = [[row[name] for name in ("cell", "lambda", "fixed", "gain", "gain_error")] for row in read_rows(path)]
    print(json.dumps({"benchmark": "at_scale", "cells": shown}))


if __name__ == "__main__":
    main()
