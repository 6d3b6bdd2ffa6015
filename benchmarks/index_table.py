"""Documents as a voice of the mixture: perplexity beside base and memory, seconds to build, us a look-up, bytes a token.

    python benchmarks/index_table.py BASE.gguf --documents NAME=TRAIN.jsonl [NAME=...] --text NAME=PATH [NAME=PATH ...]
                                     --out FILE.csv [--memory MEMORY.gguf] [--sizes 150000 0] [--tokens 6144]

For each name of --documents an index is made of about so many tokens as --sizes says (0: all), from documents at even
distances. Its columns are the text of its own name and those that no index has. Each index and the memory join the base
with weights that learn (auto), and nothing is fitted. A text is --tokens scored tokens, windows of 1,024. --out.npz
keeps what the models said: run again, no model runs. The last line is one JSON object.
"""

import argparse
import csv
import json
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from provenance import made_by

from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine, MemoryMixture
from memdec_edge.engine.blend import Index, resolve
from memdec_edge.evaluation.perplexity import IndexScores, TokenScores, index_scores, join_documents, score_tokens
from memdec_edge.evaluation.windows import Window
from memdec_edge.gguf.index_file import IndexFile
from memdec_edge.mixture.match import Matcher
from memdec_edge.options import EvalOptions, LoadOptions, MemoryOptions, MixtureOptions

PROBED = 5000  # look-ups that are timed


@dataclass(frozen=True)
class Text:
    """What the models said of a text, and its tokens."""

    tokens: list[int]
    windows: list[Window]
    base: np.ndarray
    memory: np.ndarray | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--documents", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--text", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[150_000, 0])
    parser.add_argument("--tokens", type=int, default=6144)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    documents = dict(each.split("=", 1) for each in args.documents)
    texts = read(args, dict(each.split("=", 1) for each in args.text))
    table: dict[str, dict[str, float | str]] = {}
    for name, text in texts.items():
        found = TokenScores(text.windows, text.base, [] if text.memory is None else [text.memory], 0, 0)
        table.setdefault("base", {})[name] = ppl(text.base)
        if text.memory is not None:
            table.setdefault("base + memory", {})[name] = auto(found, args.memory)
    for domain, path in documents.items():
        columns = [name for name in texts if name == domain or name not in documents]
        for size in args.sizes:
            with TemporaryDirectory() as folder:
                costs, indexed = make(args.base, Path(path), size, Path(folder) / "memdec-index.gguf")
                try:
                    label = f"index of {domain}, {costs['tokens']:,} tokens"
                    for name in columns:
                        says = index_scores(indexed.file, texts[name].tokens, texts[name].windows)
                        for row, value in mixed(texts[name], says, indexed, args.memory).items():
                            table.setdefault(f"base + {row}{label}", {})[name] = value
                    table[f"base + {label}"] |= costs | {"us a look-up": round(look_up(indexed, texts[domain]), 1)}
                finally:
                    indexed.close()
    columns = [*texts, "tokens", "seconds to build", "bytes a token", "us a look-up"]
    with args.out.open("w", newline="", encoding="utf-8") as file:
        file.write(made_by())
        writer = csv.writer(file)
        writer.writerow(["", *columns])
        for row, values in table.items():
            writer.writerow([row, *(shown(values.get(column, "")) for column in columns)])
    print(args.out.read_text(encoding="utf-8"))
    print(json.dumps({"benchmark": "index_table", "rows": table}))


def read(args: argparse.Namespace, texts: dict[str, str]) -> dict[str, Text]:
    """What base and memory say of each text, from one pass of each or from an earlier run."""
    kept = args.out.with_suffix(".npz")
    stored = dict(np.load(kept)) if kept.exists() else {}
    memories = [MemoryOptions(args.memory)] if args.memory else []
    missing = [name for name in texts if name not in stored]
    if missing:
        with closing(Engine(args.base, memories, LoadOptions(n_ctx=1024))) as engine:
            for name in missing:
                documents = read_documents(Path(texts[name]))
                score = score_tokens(engine, documents, EvalOptions(max_tokens=args.tokens))
                stored[name] = np.stack([score.base, *score.memories])
                stored[f"{name} windows"] = np.array([(each.start, each.scored, each.end) for each in score.windows])
                stored[f"{name} tokens"] = np.array(join_documents(engine, documents), np.int32)
                np.savez(kept, **stored)
    found = {}
    for name in texts:
        base, *memory = stored[name]
        windows = [Window(*map(int, bounds)) for bounds in stored[f"{name} windows"]]
        found[name] = Text(stored[f"{name} tokens"].tolist(), windows, base, memory[0] if memory else None)
    return found


def ppl(log_probs: np.ndarray) -> float:
    return float(np.exp(-log_probs.mean()))


def auto(found: TokenScores, memory: Path) -> float:
    """Perplexity of base and memory with weights that learn."""
    weights = MixtureOptions()
    rule = _of_memory(memory, weights, []).rule()
    assert rule
    return ppl(found.learned(rule).log_probs)


def mixed(text: Text, says: IndexScores, indexed: Index, memory: Path | None) -> dict[str, float]:
    """Perplexities with the index: beside the base, and beside base and memory."""
    rule = resolve([], [indexed], MixtureOptions()).rule()
    assert rule
    found = {"": ppl(TokenScores(text.windows, text.base, [], 0, 0, [says]).learned(rule).log_probs)}
    if text.memory is not None and memory:
        both = _of_memory(memory, MixtureOptions(), [indexed]).rule()
        assert both
        scores = TokenScores(text.windows, text.base, [text.memory], 0, 0, [says])
        found["memory + "] = ppl(scores.learned(both).log_probs)
    return found
