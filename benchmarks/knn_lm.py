"""kNN-LM, an index's rival at inference: perplexity, seconds to build, microseconds and bytes a token.

    python benchmarks/knn_lm.py TEACHER KEPT.npz --documents TRAIN.jsonl --valid VALID.jsonl --text NAME [NAME ...]
                                --out FILE.csv [--size 150000] [--k 1024]

KEPT is what benchmarks/index_table.py kept: tokens, windows, and what the base says of them. TEACHER is the same base,
a Hugging Face folder or a GGUF. Its keys (the paper's) over the same documents are the datastore, searched exactly in
memory. p_kNN joins the base in three ways: with one lambda (1911.00172), by the distance of the nearest key
(train/knn/gate.py), both fitted on 8,192 tokens of --valid, and with a weight that learns as that of an index does,
where only tau is fitted. The last line is one JSON object.
"""

import argparse
import csv
import json
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch
from index_table import some
from provenance import made_by

from memdec_edge.documents import read_documents
from memdec_edge.evaluation.windows import Window
from memdec_edge.mixture.online import learn
from memdec_edge.mixture.weights import Mixture, SoftBayes
from memdec_edge.options import LAMBDAS
from memdec_edge.progress import progress
from memdec_edge.train.corpus import Tokens, pack
from memdec_edge.train.knn.exact import Exact
from memdec_edge.train.knn.gate import TAUS, fit_gate
from memdec_edge.train.targets import kernel
from memdec_edge.train.teacher import Reading, Teacher, gather_blocks, n_blocks, spread_blocks
from memdec_edge.train.teachers import open_teacher

CPU = torch.device("cpu")
BLOCK = 1024
VALID = 8192  # tokens on which tau, lambda and gate are fitted
PROBED = 50  # searches of one query that are timed
Wide = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "kept"):
        parser.add_argument(name, type=Path)
    for name in ("documents", "valid", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--text", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--size", type=int, default=150_000)
    parser.add_argument("--k", type=int, default=1024)
    args = parser.parse_args()
    teacher = open_teacher(args.teacher, "mlp_input", CPU)
    store, seconds = datastore(args, teacher)
    valid = pack(read_documents(args.valid), teacher.encoder, 0)
    blocks = spread_blocks(valid, BLOCK, VALID)
    found = read(teacher, valid, blocks, "validation")
    labels = gather_blocks(valid, blocks, BLOCK)[:, 1:].reshape(-1).numpy()
    distances, hits = store.search(found, labels)
    own = found.logprobs.astype(np.float64)
    tau, share = one_lambda(distances, hits, own)
    gated = fit_gate(distances, hits, found.logprobs, None)
    rows: dict[str, dict[str, float]] = {"one lambda": {}, "by distance": {}, "weight that learns": {}}
    for name in args.text:
        text = Kept(args.kept, name)
        distances, hits = text.search(store, teacher)
        knn, by_gate = (np.maximum((kernel(distances, t) * hits).sum(1), 1e-30) for t in (tau, gated.tau))
        base, gate = np.exp(text.base), gated.gate.at(distances[:, 0])
        rows["one lambda"][name] = ppl(np.log(share * knn + (1 - share) * base))
        rows["by distance"][name] = ppl(np.log(gate * by_gate + (1 - gate) * base))
        says = np.stack([text.base, np.log(knn)])
        rows["weight that learns"][name] = ppl(learn(Mixture((0.5,), (1.0,)), SoftBayes((0.5,)), says).log_probs)
        rows.setdefault("base", {})[name] = ppl(text.base)
    costs = {"tokens": store.n, "tau": tau, "lambda": share, "seconds to build": seconds,
             "us a look-up": store.look_up(found), "bytes a token": store.bytes / store.n}  # fmt: skip
    with args.out.open("w", newline="", encoding="utf-8") as file:
        file.write(made_by())
        writer = csv.writer(file)
        writer.writerow(["", *args.text, *costs])
        for row, values in rows.items():
            shown = costs if row != "base" else dict.fromkeys(costs, "")
            writer.writerow([row, *(f"{values[name]:.4g}" for name in args.text), *shown.values()])
    print(args.out.read_text(encoding="utf-8"))
    print(json.dumps({"benchmark": "knn_lm", "rows": rows, "costs": costs}))


class Store:
    """Keys and next tokens of all training positions."""

    def __init__(self, keys: npt.NDArray[np.float16], values: Tokens, k: int) -> None:
        self.values, self.k, self.n = values, min(k, len(keys)), len(keys)
        self.bytes = keys.nbytes + values.nbytes
        self.searcher = Exact([keys], CPU)

    def search(self, found: Reading, labels: Tokens) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Squared distances [n, k], nearest first, and whether each neighbour's next token is the label."""
        distances, indices = self.searcher.search(torch.from_numpy(found.keys), self.k)
        return distances.numpy(), self.values[indices.numpy()] == labels[:, None]

    def look_up(self, found: Reading) -> float:
        """Microseconds of one query by itself, as in decoding, without the model that makes the key."""
        times = []
        for key in torch.from_numpy(found.keys[:PROBED]):
            begin = perf_counter()
            self.searcher.search(key[None], self.k)
            times.append(1e6 * (perf_counter() - begin))
        return median(times)


class Kept:
    """A text as index_table.py scored it."""

    def __init__(self, path: Path, name: str) -> None:
        stored = np.load(path)
        self.name, self.base = name, stored[name][0]
        self.windows = [Window(*map(int, bounds)) for bounds in stored[f"{name} windows"]]
        self.tokens = stored[f"{name} tokens"].astype(np.uint32)

    def search(self, store: Store, teacher: Teacher) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Neighbours of the scored tokens. A stream of one block for each window lets the teacher read them."""
        stream = np.zeros(len(self.windows) * BLOCK + 1, np.uint32)
        rows: list[int] = []
        labels = []
        for number, window in enumerate(self.windows):
            stream[number * BLOCK :][: window.end - window.start] = self.tokens[window.start : window.end]
            rows += range(
                number * BLOCK + window.scored - 1 - window.start, number * BLOCK + window.end - 1 - window.start
            )
            labels.append(self.tokens[window.scored : window.end])
        found = read(teacher, stream, list(range(len(self.windows))), self.name)
        chosen = Reading(found.keys[rows], found.logprobs[rows], found.ids, found.probs)
        off = abs(float(chosen.logprobs.mean() - self.base.mean()))
        assert off < 0.05, f"the teacher is not the base: {off:.3f} nats a token apart on {self.name}"
        return store.search(chosen, np.concatenate(labels))


def datastore(args: argparse.Namespace, teacher: Teacher) -> tuple[Store, float]:
    """The datastore, and the seconds that it took."""
    with TemporaryDirectory() as folder:
        chosen = Path(folder) / "documents.jsonl"
        chosen.write_text("\n".join(some(args.documents, args.size)), encoding="utf-8")
        documents = read_documents(chosen)
    begin = perf_counter()
    tokens = pack(documents, teacher.encoder, 0)
    blocks = list(range(n_blocks(tokens, BLOCK)))
    with progress("keys", len(blocks) * BLOCK) as advance:
        keys = teacher.read(tokens, blocks, BLOCK, 4, advance).keys
    return Store(keys, tokens[1 : len(keys) + 1], args.k), perf_counter() - begin


def read(teacher: Teacher, tokens: Tokens, blocks: list[int], name: str) -> Reading:
    with progress(name, len(blocks) * BLOCK) as advance:
        return teacher.read(tokens, blocks, BLOCK, 4, advance, scored=True)


def one_lambda(distances: npt.NDArray[np.float32], hits: npt.NDArray[np.bool_], own: Wide) -> tuple[float, float]:
    """The temperature and the lambda with the least perplexity."""
    scale, found = float(np.median(distances)), []
    for tau in (scale * TAUS).tolist():
        knn = (kernel(distances, tau) * hits).sum(1)
        found += [
            (ppl(np.log(np.maximum(share * knn + (1 - share) * np.exp(own), 1e-30))), tau, share) for share in LAMBDAS
        ]
    return min(found)[1:]


def ppl(log_probs: Wide) -> float:
    return float(np.exp(-log_probs.mean()))


if __name__ == "__main__":
    main()
