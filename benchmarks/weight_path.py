"""The weights over a text that changes its subject and changes it back: a plot for docs/weights.md.

    python benchmarks/weight_path.py BASE.gguf MEMORY.gguf [MEMORY.gguf ...] --parts NAME=PATH [NAME=PATH ...]
                                     --out FILE.png [--tokens 250]

Each part is the first --tokens tokens of its text; a name that comes again goes on where it ended. FILE.csv has the
weights that meet each token. The last line is one JSON object: the mean weights of each part's second half.
"""

import argparse
import csv
import json
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
from provenance import made_by

from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine
from memdec_edge.evaluation.perplexity import join_documents, token_scores
from memdec_edge.evaluation.windows import Window
from memdec_edge.mixture.online import learn
from memdec_edge.mixture.weights import Mixture, SoftBayes
from memdec_edge.options import LoadOptions, MemoryOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("memories", type=Path, nargs="+")
    parser.add_argument("--parts", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=250)
    args = parser.parse_args()
    names, tokens, seen = [], list[int](), Counter[str]()
    n = len(args.memories)
    load = LoadOptions(n_ctx=len(args.parts) * args.tokens)
    with closing(Engine(args.base, [MemoryOptions(path, 0.0) for path in args.memories], load)) as engine:
        for name, path in (part.split("=", 1) for part in args.parts):
            begin = seen[name] * args.tokens
            tokens += join_documents(engine, read_documents(Path(path)))[begin : begin + args.tokens]
            seen[name] += 1
            names.append(name)
        windows = [Window(0, 1, len(tokens))]
        contexts = [engine.context, *(memory.context for memory in engine.memories)]
        columns = np.stack([token_scores(context, tokens, windows, lambda _: None)[0][0] for context in contexts])
    first = (0.5 / n,) * n
    weights = learn(Mixture(first, (1.0,) * n), SoftBayes(first), columns).weights
    labels = ["base", *(path.stem.removeprefix("memdec-") for path in args.memories)]
    with args.out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        file.write(made_by())
        writer = csv.writer(file)
        writer.writerow(["token", *labels])
        writer.writerows([at, *(f"{weight:.4f}" for weight in column)] for at, column in enumerate(weights.T, 1))
    plot(args.out, weights, labels, names, args.tokens)
    means = [weights[:, (2 * at + 1) * args.tokens // 2 : (at + 1) * args.tokens].mean(1) for at in range(len(names))]
    shown = [
        {"part": name} | dict(zip(labels, mean.round(3).tolist(), strict=True))
        for name, mean in zip(names, means, strict=True)
    ]
    print(json.dumps({"benchmark": "weight_path", "second_halves": shown}))


def plot(path: Path, weights: npt.NDArray[np.float64], labels: list[str], names: list[str], length: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.2))
    for label, line in zip(labels, weights, strict=True):
        axes.plot(line, label=label, color="0.6" if label == "base" else None)
    for at, name in enumerate(names):
        axes.axvline(at * length, color="0.8", linewidth=0.8)
        axes.text((at + 0.5) * length, 1.03, name, ha="center")
    axes.set(xlim=(0, weights.shape[1]), ylim=(0, 1), xlabel="token", ylabel="weight")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
