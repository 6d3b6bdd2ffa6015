"""Five ways to adapt one base to a domain, from the same tokens: what each gains there and loses elsewhere.

    python benchmarks/adaptation.py --teacher DIR --corpus DIR --general FILE.jsonl --out DIR [--tokens 24576]

base; DAPT, the base trained further; kNN-LM, the base and a datastore of its own keys; control + base, the memory
trained without a retriever (beta 0); memory + base. DAPT and the control are one model, the whole base trained on, at
the epoch where it mixes best; what differs is that the control is mixed. Epoch, lambda and the datastore's temperature
come from validation text; the test split is scored once, when all is chosen, and the result kept: run again, it is
shown.

Tokens, steps and minutes are all that were spent, those of the memory's fine-tuned teacher and of epochs after the best
one among them.

Writes DIR/adaptation.csv (a row for each way), DIR/general.csv (domain and general text over lambda), DIR/general.png,
DIR/distance.csv (memory against control by the distance of the nearest key); the last line is one JSON object.
Perplexity is that of blocks of --block tokens without what stands before them, in PyTorch, so that a datastore can be
scored too.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from provenance import made_by, metrics

from memdec_edge.convert import convert
from memdec_edge.documents import read_documents
from memdec_edge.files import write_text
from memdec_edge.options import LAMBDAS, CacheOptions, ConvertOptions, TrainOptions
from memdec_edge.train import build_cache, train
from memdec_edge.train.corpus import Tokens, pack
from memdec_edge.train.knn.cache import Cache
from memdec_edge.train.knn.fit import open_searcher
from memdec_edge.train.models import load_source
from memdec_edge.train.targets import kernel
from memdec_edge.train.teacher import gather_blocks, spread_blocks
from memdec_edge.train.teachers import open_teacher

DISTANCES = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0, np.inf)
POSITIONS = {"valid": 8_192, "test": 32_768, "general": 8_192}
CPU = torch.device("cpu")
Probs = npt.NDArray[np.float64]  # of the true next token at each scored position


@dataclass(frozen=True)
class Text:
    """A text to score."""

    tokens: Tokens
    blocks: list[int]


class Bench:
    """Caches and models of one domain, each made once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, arguments.out
        self.cache = CacheOptions(
            arguments.teacher, arguments.corpus, self.out / "cache", block=arguments.block,
            batch=arguments.batch, max_tokens=arguments.tokens + 1, k=256,
        )  # fmt: skip
        self.datastore = replace(self.cache, out=self.out / "datastore", finetune_teacher=0, target="knn")
        self.steps = arguments.tokens // arguments.block // arguments.batch  # of an epoch

    def text(self, split: str) -> Text:
        path = self.arguments.general if split == "general" else self.arguments.corpus / f"{split}.jsonl"
        block = self.arguments.block
        tokens = pack(read_documents(path), load_source(self.arguments.teacher).encoder, 0)
        return Text(tokens, spread_blocks(tokens, block, POSITIONS[split]))

    def timed(self, name: str, work: Callable[[], Any]) -> float:
        """Do the work, unless it was done before; its core-minutes."""
        path = self.out / f"{name}.minutes"
        if not path.is_file():
            began = time.monotonic()
            work()
            write_text(path, str((time.monotonic() - began) * torch.get_num_threads() / 60))
        return float(path.read_text(encoding="utf-8"))

    def options(self, name: str, epochs: int, beta: float) -> TrainOptions:
        arguments = self.arguments
        return TrainOptions(
            self.cache, self.out / name, steps=self.steps * epochs, beta=beta, lr=arguments.lr,
            valid_every=self.steps // 2, save_every=self.steps,
        )  # fmt: skip

    def probs(self, model: Path, split: str) -> Probs:
        """Of a model alone."""
        return self.read(model, split)[1]

    def retrieved(self, split: str, tau: float) -> Probs:
        """p_kNN of the true next token, from the plain base's datastore."""
        keys, _ = self.read(self.arguments.teacher, split)
        cache, text = Cache(self.datastore), self.text(split)
        distances, indices = open_searcher(cache, CPU).search(torch.from_numpy(keys), self.cache.k)
        labels = gather_blocks(text.tokens, text.blocks, self.arguments.block)[:, 1:].reshape(-1).numpy()
        hits = cache.tokens("train")[indices.numpy() + 1] == labels[:, None]
        return np.asarray((kernel(distances.numpy(), tau) * hits).sum(1))

    def read(self, model: Path, split: str) -> tuple[Any, Probs]:
        """Keys and probabilities, kept on disk: three ways ask for those of the base."""
        path = self.out / "scores" / f"{model.name}-{split}.npz"
        if not path.is_file():
            text = self.text(split)
            teacher = open_teacher(model, self.cache.key, CPU)
            block = self.arguments.block
            read = teacher.read(text.tokens, text.blocks, block, 4, lambda count: None, scored=True)
            path.parent.mkdir(exist_ok=True)
            np.savez(path, keys=read.keys, logprobs=read.logprobs)
        with np.load(path) as arrays:
            return arrays["keys"], np.exp(arrays["logprobs"].astype(np.float64))


def perplexity(probs: Probs) -> float:
    return float(np.exp(-np.log(np.maximum(probs, 1e-30)).mean()))


def mixed(other: Probs, base: Probs) -> dict[float, float]:
    """lambda -> perplexity."""
    return {share: perplexity(share * other + (1 - share) * base) for share in LAMBDAS}


def best_of(sweep: dict[float, float]) -> float:
    return min(sweep, key=sweep.__getitem__)


def paired_error(ours: Probs, theirs: Probs, block: int) -> float:
    """Standard error of the difference of two mean losses, in nats, over blocks."""
    differences = (np.log(theirs) - np.log(ours)).reshape(-1, block).mean(1)
    return float(differences.std(ddof=1) / np.sqrt(len(differences)))


def measure(bench: Bench) -> dict[str, Any]:
    arguments, base = bench.arguments, bench.arguments.teacher
    minutes = {"kNN-LM": bench.timed("datastore", lambda: build_cache(bench.datastore))}
    recipes = {"control": (arguments.control_epochs, 0.0), "memory": (arguments.epochs, arguments.beta)}
    making = bench.timed("cache", lambda: build_cache(bench.cache))
    reports = {name: train(bench.options(name, *recipe)) for name, recipe in recipes.items()}
    seconds = {name: [line["seconds"] for line in metrics(bench.out / name)] for name in recipes}
    threads = torch.get_num_threads()
    minutes |= {name: sum(each) * threads / 60 for name, each in seconds.items()}
    minutes["memory"] += making
    valid = {name: bench.probs(bench.out / name if name in recipes else base, "valid") for name in ("base", *recipes)}
    temperatures = Cache(bench.datastore).stage.manifest["tau"] * 2.0 ** np.arange(-2, 3)
    sweeps = {float(tau): mixed(bench.retrieved("valid", float(tau)), valid["base"]) for tau in temperatures}
    tau = min(sweeps, key=lambda value: min(sweeps[value].values()))
    lambdas = {name: best_of(mixed(valid[name], valid["base"])) for name in recipes} | {"kNN-LM": best_of(sweeps[tau])}

    found: dict[str, dict[str, Probs]] = {}  # only from here on is the test split read
    for split in ("test", "general"):
        found[split] = {name: bench.probs(bench.out / name if name in recipes else base, split) for name in valid}
        found[split]["kNN-LM"] = bench.retrieved(split, tau)
    curves = {name: {split: mixed(found[split][name], found[split]["base"]) for split in found} for name in lambdas}
    alone = {split: perplexity(found[split]["base"]) for split in found}
    steps = {name: report.steps for name, report in reports.items()} | {"kNN-LM": 0}
    steps["memory"] += len(metrics(bench.cache.out / "teacher"))
    size = {name: gguf_bytes(bench, name) for name in recipes}
    files = (bench.datastore.out / "keys").iterdir()
    size["kNN-LM"] = sum(file.stat().st_size for file in files) + 4 * arguments.tokens
    rows = [{"way": "base", "lambda": "", **alone, "tokens": 0, "steps": 0, "best_step": ""}]
    rows[0] |= {"core_minutes": 0.0, "bytes": ""}
    for way, name, share in (
        ("DAPT", "control", 1.0),
        ("kNN-LM", "kNN-LM", lambdas["kNN-LM"]),
        ("control + base", "control", lambdas["control"]),
        ("memory + base", "memory", lambdas["memory"]),
    ):
        figures = {split: curve[share] for split, curve in curves[name].items()}
        seen = steps[name] * arguments.block * arguments.batch or arguments.tokens
        best = reports[name].best_step if name in reports else ""
        cost = {"tokens": seen, "steps": steps[name], "best_step": best, "core_minutes": minutes[name]}
        cost |= {"bytes": size[name]}
        rows.append({"way": way, "lambda": share, **figures, **cost})
    ours, theirs = (
        lambdas[name] * found["test"][name] + (1 - lambdas[name]) * found["test"]["base"]
        for name in ("memory", "control")
    )
    difference = perplexity(ours) / perplexity(theirs) - 1
    error = paired_error(ours, theirs, arguments.block)
    return {
        "made_by": made_by(),
        "rows": rows, "curves": curves, "tau": tau, "memory_against_control": difference, "standard_error": error,
        "distance": by_distance(bench, "test", ours, theirs),
        "forgetting": {name: forgetting(curves[name], curves["control"], alone) for name in curves},
    }  # fmt: skip


def by_distance(bench: Bench, split: str, ours: Probs, theirs: Probs) -> list[dict[str, float]]:
    """Memory against control where the nearest of the base's keys is so far away (squared L2)."""
    keys, _ = bench.read(bench.arguments.teacher, split)
    nearest = open_searcher(Cache(bench.datastore), CPU).search(torch.from_numpy(keys), 1)[0][:, 0].numpy()
    rows = []
    for low, high in pairwise(DISTANCES):
        here = (nearest >= low) & (nearest < high)
        ratio = float(np.exp((np.log(theirs[here]) - np.log(ours[here])).mean())) if here.any() else 1.0
        rows.append({"from": low, "to": high, "share": float(here.mean()), "memory_over_control": ratio})
    return rows


def forgetting(
    curve: dict[str, dict[float, float]], dapt: dict[str, dict[float, float]], base: dict[str, float]
) -> dict[str, float] | None:
    """At the least lambda where a mixture equals DAPT in the domain: its loss on general text, in shares of DAPT's.

    A loss is a difference of log-perplexities, so a rise of 10 % counts twice one of 5 %. None: it nowhere equals DAPT.
    """
    for share, value in curve["test"].items():
        if value <= dapt["test"][1.0]:
            lost, theirs = (np.log(each / base["general"]) for each in (curve["general"][share], dapt["general"][1.0]))
            return {"lambda": share, "loss": float(lost), "of_dapt": float(lost / theirs)}
    return None


def gguf_bytes(bench: Bench, name: str) -> int:
    file: Path = bench.out / f"memdec-{name}.gguf"
    if not file.is_file():
        convert(ConvertOptions(bench.out / name, file, "q8_0", verify=False))
    return file.stat().st_size


def write(found: dict[str, Any], folder: Path) -> None:
    head = found["made_by"]
    with (folder / "adaptation.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(head)
        writer = csv.DictWriter(file, list(found["rows"][0]))
        writer.writeheader()
        for row in found["rows"]:
            writer.writerow({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    with (folder / "distance.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(head)
        writer = csv.DictWriter(file, list(found["distance"][0]))
        writer.writeheader()
        writer.writerows(found["distance"])
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    with (folder / "general.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(head + "way,lambda,domain,general\n")
        for name, curve in found["curves"].items():
            points = [(curve["test"][share], curve["general"][share]) for share in curve["test"]]
            file.writelines(
                f"{name},{share},{point[0]:.4f},{point[1]:.4f}\n"
                for share, point in zip(curve["test"], points, strict=True)
            )
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set(
        xlabel="domain, test perplexity", ylabel="general text, perplexity", title="lambda from 0 to 1 in steps of 0.05"
    )
    best = {
        split: min(min(curve[split].values()) for curve in found["curves"].values()) for split in ("test", "general")
    }
    base = found["rows"][0]  # a datastore alone is far outside
    axes.set(xlim=(0.95 * best["test"], 1.05 * base["test"]), ylim=(0.95 * best["general"], 1.4 * base["general"]))
    axes.legend()
    figure.savefig(folder / "general.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "corpus", "general", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=24_576, help="distinct tokens of training text")
    parser.add_argument("--epochs", type=int, default=3, help="of the memory, after those of its teacher")
    parser.add_argument("--control-epochs", type=int, default=2, help="of the control, which is DAPT too")
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "result.json"
    if not kept.is_file():
        write_text(kept, json.dumps(measure(Bench(arguments))))
    found = json.loads(kept.read_text(encoding="utf-8"))
    for row in found["rows"]:
        print(row)
    write(found, arguments.out)
    print(json.dumps({key: found[key] for key in ("tau", "memory_against_control", "standard_error", "forgetting")}))


if __name__ == "__main__":
    main()
