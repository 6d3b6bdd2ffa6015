"""Table 1 of 2508.09874: a GPT-2 family on WikiText-103, adapted in four ways, with the paper's perplexities beside.

    python examples/scenarios/wikitext.py OUT TEXT MODEL [MODEL ...] --teacher MODEL [--init MODEL] [--memory MODEL]

    base      the model as it is
    DAPT      the model trained further on the text (beta 0)
    kNN-LM    the model and its own datastore of the text (1911.00172); one lambda
    control   the model and the smallest one of DAPT: a memory that imitated no retriever
    memory    the model and a memory: --memory, or one that begins as --init and imitates the retriever of --teacher

TEXT holds train.jsonl, valid.jsonl and test.jsonl; --parquet makes them of the Hub's files. A MODEL is a folder or a
name on the Hub. Every lambda is the best on the validation split, every figure is of the test split: windows of 1,024
tokens, by 512, as in the paper. Run again after a stop, it goes on: OUT keeps caches, trainings and figures. The last
line is one JSON object.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from memdec_edge.documents import read_documents
from memdec_edge.evaluation.windows import Window, slide, thin
from memdec_edge.files import atomic_path, write_text
from memdec_edge.hub import checkpoint_of, local
from memdec_edge.options import LAMBDAS, CacheOptions, TrainOptions
from memdec_edge.progress import progress
from memdec_edge.train import build_cache, train
from memdec_edge.train.corpus import pack
from memdec_edge.train.knn.cache import Cache
from memdec_edge.train.knn.fit import open_searcher
from memdec_edge.train.targets import kernel
from memdec_edge.train.teacher import Teacher
from memdec_edge.train.teachers import open_teacher

PAPER = {  # table 1 of the paper; the control is an average there, over the four
    "base": {"gpt2": 24.89, "gpt2-medium": 18.29, "gpt2-large": 15.80, "gpt2-xl": 14.39},
    "RAG": {"gpt2": 18.46, "gpt2-medium": 14.01, "gpt2-large": 12.09, "gpt2-xl": 11.21},
    "LoRA": {"gpt2": 18.63, "gpt2-medium": 13.88, "gpt2-large": 11.77, "gpt2-xl": 10.67},
    "DAPT": {"gpt2": 15.74, "gpt2-medium": 12.78, "gpt2-large": 11.10, "gpt2-xl": 10.16},
    "kNN-LM": {"gpt2": 15.62, "gpt2-medium": 12.95, "gpt2-large": 12.21, "gpt2-xl": 11.30},
    "control": {},
    "memory": {"gpt2": 13.36, "gpt2-medium": 12.25, "gpt2-large": 11.53, "gpt2-xl": 10.93},
}
CHUNK = 16  # windows whose neighbours are searched together
Logs = npt.NDArray[np.float64]  # log-probs of the scored tokens, nats
Both = dict[str, Logs]  # of the validation split and of the test split


def articles(lines: list[str]) -> Iterator[str]:
    """The articles of WikiText: a line " = Title = " begins one; " = = Section = = " does not."""
    article: list[str] = []
    for line in [*lines, " = "]:
        if line.startswith(" = ") and not line.startswith(" = = "):
            if any(article):
                yield "".join(article)
            article = []
        article.append(line)


def prepare(parquet: Path, text: Path) -> None:
    """Write the splits of the Hub's Parquet files, a document for each article."""
    import pyarrow.parquet

    text.mkdir(parents=True, exist_ok=True)
    for split, called in (("train", "train"), ("valid", "validation"), ("test", "test")):
        if (text / f"{split}.jsonl").exists():
            continue
        parts = sorted(parquet.rglob(f"{called}-*.parquet"))
        lines = [line for part in parts for line in pyarrow.parquet.read_table(part)["text"].to_pylist()]
        write_text(text / f"{split}.jsonl", "".join(json.dumps({"text": each}) + "\n" for each in articles(lines)))


class Run:
    """One table: its text, its options, and figures that were found before."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.text, self.out = options, options.text, options.out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def cache(self, model: Path, name: str) -> CacheOptions:
        """The paper's cache of a model: its own keys, and no fine-tuning before."""
        options = self.options
        return CacheOptions(
            model, self.text, self.out / f"cache-{name}", finetune_teacher=0.0, target="knn", k=options.k,
            knn_temp=options.knn_temp, block=options.window, batch=options.batch,
        )  # fmt: skip

    def further(self, model: Path, name: str) -> Path:
        """A model trained further on the text."""
        cache, epochs, lr = self.cache(model, name), self.options.dapt_epochs, self.options.dapt_lr
        return train(TrainOptions(cache, self.out / f"dapt-{name}", beta=0.0, epochs=epochs, lr=lr)).path

    def memory(self, teacher: Path, init: Path) -> Path:
        """A memory trained as the paper does it."""
        cache, given = self.cache(teacher, "of-teacher"), self.options
        recipe = TrainOptions(cache, self.out / "memory", init=init, beta=given.beta, epochs=given.epochs, lr=given.lr)
        return train(recipe).path

    def both(self, name: str, make: Callable[[str], Logs]) -> Both:
        """What `make` gives of each split, kept in OUT."""
        found = {}
        folder = self.out / f"figures-{self.options.window}-{self.options.tokens}"
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("valid", "test"):
            path = folder / f"{name}-{split}.npy"
            if not path.exists():
                with atomic_path(path) as part, part.open("wb") as file:
                    np.save(file, make(split))
            found[split] = np.load(path)
        return found

    def scores(self, name: str, model: Path) -> Both:
        """A model by itself."""
        teacher: list[Teacher] = []

        def make(split: str) -> Logs:
            if not teacher:
                teacher.append(open_teacher(model, "mlp_input", self.device))
            return np.concatenate([logs for _, logs, _ in self.read(teacher[0], split)])

        return self.both(name, make)

    def read(
        self, teacher: Teacher, split: str
    ) -> Iterator[tuple[npt.NDArray[np.float16], Logs, npt.NDArray[np.uint32]]]:
        """Keys, log-probs and labels of the scored tokens, some windows at a time."""
        size = self.options.window
        tokens = pack(read_documents(self.text / f"{split}.jsonl"), teacher.encoder, 0)
        windows = thin(slide(len(tokens), size, size // 2), self.options.tokens)
        with progress(f"{teacher.name}, {split}", len(windows) * size) as advance:
            for start in range(0, len(windows), CHUNK):
                chunk = windows[start : start + CHUNK]
                stream, rows, labels = streamed(tokens, chunk, size)
                blocks = list(range(len(chunk)))
                found = teacher.read(stream, blocks, size, self.options.batch, advance, scored=True)
                yield found.keys[rows], found.logprobs[rows].astype(np.float64), labels

    def retriever(self, model: Path, name: str) -> Both:
        """p_kNN of the true tokens, of a datastore of the model's own keys."""

        def make(split: str) -> Logs:
            options = self.cache(model, name)
            tau = build_cache(options).tau
            cache = Cache(options)
            searcher, values = open_searcher(cache, self.device), cache.tokens("train")
            found = []
            for keys, _, labels in self.read(open_teacher(model, options.key, self.device), split):
                distances, indices = searcher.search(torch.from_numpy(keys).to(self.device), cache.k)
                hits = values[indices.cpu().numpy() + 1] == labels[:, None]
                found.append((kernel(distances.cpu().numpy(), tau) * hits).sum(1))
            return np.log(np.maximum(np.concatenate(found), 1e-30))

        return self.both(f"knn-{name}", make)


def streamed(
    tokens: npt.NDArray[np.uint32], windows: list[Window], size: int
) -> tuple[npt.NDArray[np.uint32], list[int], npt.NDArray[np.uint32]]:
    """A stream with a block for each window, the positions before its scored tokens, and these tokens."""
    stream, rows, labels = np.zeros(len(windows) * size + 1, np.uint32), list[int](), []
    for number, window in enumerate(windows):
        stream[number * size :][: window.end - window.start] = tokens[window.start : window.end]
        first = number * size - window.start - 1
        rows += range(first + window.scored, first + window.end)
        labels.append(tokens[window.scored : window.end])
    return stream, rows, np.concatenate(labels)


def perplexity(logs: Logs) -> float:
    return float(np.exp(-logs.mean()))


def mixed(base: Logs, other: Logs, share: float) -> float:
    """Perplexity of a mixture."""
    return perplexity(np.log((1 - share) * np.exp(base) + share * np.exp(other) + 1e-30))


def at_best(base: Both, other: Both) -> tuple[float, float]:
    """Perplexity on the test split at the lambda that is best on the validation split, and that lambda."""
    share = min(LAMBDAS, key=partial(mixed, base["valid"], other["valid"]))
    return mixed(base["test"], other["test"], share), share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--teacher", type=Path, required=True, help="whose retriever the memory imitates")
    parser.add_argument("--init", type=Path, help="what the memory begins as; else the first model")
    parser.add_argument("--memory", type=Path, help="a memory that is there, in place of training one")
    parser.add_argument("--epochs", type=float, default=70, help="of the memory")
    parser.add_argument("--dapt-epochs", type=float, default=3)
    parser.add_argument("--dapt-lr", type=float, help="else the best of a few short trials")
    parser.add_argument("--parquet", type=Path, help="WikiText as the Hub has it, to make TEXT of")
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--knn-temp", type=float, help="else the best on the validation split; the paper's is 16")
    parser.add_argument("--batch", type=int, default=16, help="windows in a pass")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=0, help="scored of each split; 0: all")
    parser.add_argument("--ways", nargs="+", choices=("base", "DAPT", "kNN-LM", "control", "memory"),
                        default=["base", "DAPT", "kNN-LM", "control", "memory"])  # fmt: skip
    options = parser.parse_args()
    if options.parquet:
        prepare(options.parquet, options.text)
    run, models = Run(options), {each.name: local(each, checkpoint_of) for each in options.models}
    rows: dict[str, dict[str, dict[str, float]]] = {way: {} for way in options.ways}
    smallest = next(iter(models))

    def further(name: str) -> Both:
        return run.scores(f"dapt-{name}", run.further(models[name], name))

    def memory() -> Both:
        if options.memory:
            return run.scores(f"memory-{options.memory.name}", local(options.memory, checkpoint_of))
        init = local(options.init, checkpoint_of) if options.init else models[smallest]
        return run.scores("memory", run.memory(local(options.teacher, checkpoint_of), init))

    voices = {"control": partial(further, smallest), "memory": memory}
    found = {way: make() for way, make in voices.items() if way in rows}
    for name, model in models.items():
        base = run.scores(f"base-{name}", model)
        for way, row in rows.items():
            if way in ("base", "DAPT"):
                row[name] = {"perplexity": perplexity((base if way == "base" else further(name))["test"])}
            else:
                value, share = at_best(base, run.retriever(model, name) if way == "kNN-LM" else found[way])
                row[name] = {"perplexity": value, "lambda": share}

    print(f"{'perplexity (paper)':20}" + "".join(f"{name[-20:]:>24}" for name in models))
    for way, paper in PAPER.items():
        cells = (_cell(rows.get(way, {}).get(name), paper.get(name)) for name in models)
        print(f"{way:20}" + "".join(f"{cell:>24}" for cell in cells))
    print(json.dumps({"scenario": "wikitext", "window": options.window, "rows": rows, "paper": PAPER}))


def _cell(found: dict[str, float] | None, paper: float | None) -> str:
    ours = f"{found['perplexity']:.2f}" if found else "-"
    return ours + (f" ({paper:.2f})" if paper else "")


if __name__ == "__main__":
    main()
