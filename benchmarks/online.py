"""Weights that learn against weights that are fixed, over texts in and outside a memory's domain.

    python benchmarks/online.py BASE.gguf MEMORY.gguf [MEMORY.gguf ...] --text NAME=PATH [NAME=PATH ...] --out FILE.csv
                                [--tokens 6144] [--eta 0.05] [--share 0.002] [--threads 0]

Each text is a column: perplexity of --tokens scored tokens, windows of 1,024. The first text is the domain. Several
paths, with commas between, are one text: their documents take turns, each cut to its first 1,000 characters. Rows:
base; memory alone; fixed weights; the best fixed weight of each column, which reads the answer; the online weight, with
its mean; eleven fixed mixtures as experts under fixed share (Herbster and Warmuth 1998), also frozen after the first 64
tokens of a window; the better model of each token, which no method can reach. With several memories fixed rows give
each the same weight, and each memory is scored with the online weight of its own too. FILE.npz keeps the log-probs: run
again, no model runs. The last line is one JSON object.
"""

import argparse
import csv
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from provenance import made_by

from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine
from memdec_edge.evaluation.experts import fixed_share
from memdec_edge.evaluation.perplexity import TokenScores, mix, score_tokens
from memdec_edge.evaluation.windows import Window
from memdec_edge.mixture.weights import SoftBayes
from memdec_edge.options import ETA, SHARE, EvalOptions, LoadOptions, MemoryOptions

Wide = npt.NDArray[np.float64]
GRID = tuple(i / 10 for i in range(11))
FROZEN_AFTER = 64  # tokens of a window
LONGEST = 1000  # characters of a document that takes turns with others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("memories", type=Path, nargs="+")
    parser.add_argument("--text", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=6144)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--eta", type=float, default=ETA)
    parser.add_argument("--share", type=float, default=SHARE)
    args = parser.parse_args()
    texts = dict(text.split("=", 1) for text in args.text)
    scores = read(args, texts)
    n_memories = len(args.memories)
    rule = SoftBayes((0.5 / n_memories,) * n_memories, args.eta, args.share)
    table: dict[str, dict[str, float]] = {}
    for name, found in scores.items():
        for row, value in rows(found, rule).items():
            table.setdefault(row, {})[name] = value
    best = min(GRID, key=lambda value: table[f"fixed {value:g}"][next(iter(texts))])
    left_out = {f"fixed {value:g}" for value in GRID} - {f"fixed {best:g}", "fixed 0.5", "fixed 0.8"}
    table = {row: values for row, values in table.items() if row not in left_out}
    with args.out.open("w", newline="", encoding="utf-8") as file:
        file.write(made_by())
        writer = csv.writer(file)
        writer.writerow(["", *texts])
        for row, values in table.items():
            writer.writerow([row, *(f"{values[name]:.4f}" for name in texts)])
    print(args.out.read_text(encoding="utf-8"))
    print(json.dumps({"benchmark": "online", "best_on_first": best, "rows": table}))


def read(args: argparse.Namespace, texts: dict[str, str]) -> dict[str, TokenScores]:
    """Scores of each text, from one pass of every model or from an earlier run."""
    kept, found = args.out.with_suffix(".npz"), {}
    stored = dict(np.load(kept)) if kept.exists() else {}
    missing = [name for name in texts if name not in stored]
    if missing:
        memories = [MemoryOptions(path, 0.0) for path in args.memories]
        with closing(Engine(args.base, memories, LoadOptions(n_ctx=1024, threads=args.threads))) as engine:
            for name in missing:
                score = score_tokens(engine, documents(texts[name]), EvalOptions(max_tokens=args.tokens))
                bounds = [(window.start, window.scored, window.end) for window in score.windows]
                stored[name], stored[f"{name} windows"] = np.stack([score.base, *score.memories]), np.array(bounds)
                np.savez(kept, **stored)
    for name in texts:
        base, *memories = stored[name]
        windows = [Window(*map(int, bounds)) for bounds in stored[f"{name} windows"]]
        found[name] = TokenScores(windows, base, memories, 0, 0)
    return found


def documents(paths: str) -> list[str]:
    """The documents of one path, or those of several in turns."""
    first, *others = [read_documents(Path(path)) for path in paths.split(",")]
    if not others:
        return first
    return [document[:LONGEST] for turn in zip(first, *others, strict=False) for document in turn]


def rows(found: TokenScores, rule: SoftBayes) -> dict[str, float]:
    """Perplexities of one column, and the mean weights of the online mixture."""

    def ppl(log_probs: Wide) -> float:
        return float(np.exp(-log_probs.mean()))

    table = {"base": ppl(found.base)}
    for number, log_probs in enumerate(found.memories, 1):
        table[f"memory {number} alone"] = ppl(log_probs)
    learned, n_memories = found.learned(rule), len(found.memories)
    alone = {}
    for number, log_probs in enumerate(found.memories, 1):
        one = replace(found, memories=[log_probs]).learned(SoftBayes((0.5,), rule.eta, rule.share))
        alone[f"online, memory {number} without others"] = ppl(one.log_probs)
    experts = np.stack([found.mixed([value / n_memories] * n_memories) for value in GRID])
    fixed = {f"fixed {value:g}": ppl(expert) for value, expert in zip(GRID, experts, strict=True)}
    table |= fixed | {
        "best fixed of the column": min(fixed.values()),
        **(alone if n_memories > 1 else {}),
        "online": ppl(learned.log_probs),
        "eleven mixtures, fixed share": ppl(fixed_share(experts, rule.share)[0]),
        f"eleven mixtures, frozen after {FROZEN_AFTER}": ppl(frozen(experts, found.windows, rule.share)),
        "better model of each token": ppl(np.stack([found.base, *found.memories]).max(0)),
    }
    for name, weight in zip(["base", *(f"memory {i + 1}" for i in range(n_memories))], learned.weights, strict=True):
        table[f"online, mean weight of {name}"] = float(weight.mean())
    return table


def frozen(experts: Wide, windows: list[Window], share: float) -> Wide:
    """The same, from uniform weights in each window, with the weights after its first tokens for the rest of it."""
    parts, begin = [], 0
    for window in windows:
        part = experts[:, begin : begin + window.end - window.scored]
        begin += part.shape[1]
        log_probs, log_weights = fixed_share(part[:, :FROZEN_AFTER], share)
        parts += [log_probs, mix(list(part[:, FROZEN_AFTER:]), list(np.exp(log_weights)))]
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
