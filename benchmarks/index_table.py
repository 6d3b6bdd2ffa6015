"""Documents as a voice of the mixture: perplexity beside base and memory, seconds to build, time of a look-up, size.

    python benchmarks/index_table.py BASE.gguf --documents NAME=TRAIN.jsonl [NAME=...] --text NAME=PATH [NAME=PATH ...]
                                     --out FILE.csv [--memory MEMORY.gguf] [--sizes 150000 0] [--tokens 6144]
                                     [--threads 0]

For each name of --documents an index is made of about so many tokens as --sizes says (0: all), from documents at even
distances. Its columns are the text of its own name and those that no index has. Each index and the memory join the base
with weights that learn (auto), and nothing is fitted. A text is --tokens scored tokens, windows of 1,024. --out.npz
keeps what the models said: run again, no model runs. The last line is one JSON object.
"""

import argparse
import csv
import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import numpy.typing as npt
from provenance import made_by

from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine, Index
from memdec_edge.evaluation.matches import IndexScores, index_scores
from memdec_edge.evaluation.perplexity import TokenScores, join_documents, score_tokens
from memdec_edge.evaluation.windows import Window
from memdec_edge.indexing.build import build_index
from memdec_edge.mixture.match import Matcher
from memdec_edge.options import EvalOptions, IndexOptions, LoadOptions, MemoryOptions, MixtureOptions

Wide = npt.NDArray[np.float64]
PROBED = 5000  # look-ups that are timed


@dataclass(frozen=True)
class Text:
    """What the models said of a text, and its tokens."""

    tokens: list[int]
    windows: list[Window]
    base: Wide
    memory: Wide | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--documents", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--text", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[150_000, 0])
    parser.add_argument("--tokens", type=int, default=6144)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    documents = dict(each.split("=", 1) for each in args.documents)
    texts = read(args, dict(each.split("=", 1) for each in args.text))
    table: dict[str, dict[str, float | str]] = {"base": {name: ppl(text.base) for name, text in texts.items()}}
    if args.memory:
        with closing(opened(args, [args.memory])) as engine:
            table["base + memory"] = {name: auto(engine, text) for name, text in texts.items()}
    for domain, path in documents.items():
        for size in args.sizes:
            with TemporaryDirectory() as folder:
                add_index(args, table, texts, domain, make(args.base, Path(path), size, Path(folder)), set(documents))
    columns = [*texts, "tokens", "seconds to build", "seconds of that to sort", "bytes a token", "us a look-up"]
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
        with closing(Engine(args.base, memories, LoadOptions(n_ctx=1024, threads=args.threads))) as engine:
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


def ppl(log_probs: Wide) -> float:
    return float(np.exp(-log_probs.mean()))


def opened(args: argparse.Namespace, memories: list[Path]) -> Engine:
    return Engine(args.base, [MemoryOptions(path) for path in memories], LoadOptions(n_ctx=1024, threads=args.threads))


def auto(engine: Engine, text: Text, says: IndexScores | None = None) -> float:
    """Perplexity of what an engine mixes, with weights that learn."""
    memories = [text.memory] if engine.memories and text.memory is not None else []
    rule = engine.mixture(MixtureOptions()).rule()
    assert rule
    return ppl(TokenScores(text.windows, text.base, memories, 0, 0, [says] if says else []).learned(rule).log_probs)


def some(documents: Path, size: int) -> list[str]:
    """Lines of about `size` tokens, at even distances; 0: all."""
    lines = documents.read_text(encoding="utf-8").strip("\n").split("\n")
    if not size:
        return lines
    length = sum(len(json.loads(line)["text"]) for line in lines) / 4.5  # characters of a token, about
    return lines[:: max(round(length / size), 1)]


def make(base: Path, documents: Path, size: int, folder: Path) -> tuple[Path, dict[str, float | str]]:
    """An index of about `size` tokens, from documents at even distances, and what it cost."""
    lines = some(documents, size)
    chosen = folder / "documents.jsonl"
    chosen.write_text("\n".join(lines), encoding="utf-8")
    report = build_index(IndexOptions(chosen, base, folder / "memdec-index.gguf"))
    return report.path, {
        "tokens": float(report.n_tokens),
        "seconds to build": report.seconds,
        "seconds of that to sort": report.seconds_sorting,
        "bytes a token": report.n_bytes / report.n_tokens,
    }


def add_index(
    args: argparse.Namespace, table: dict[str, dict[str, float | str]], texts: dict[str, Text], domain: str,
    made: tuple[Path, dict[str, float | str]], domains: set[str],
) -> None:  # fmt: skip
    """Fill the rows of one index."""
    path, costs = made
    label = f"index of {int(costs['tokens']):,} tokens of {domain}"
    columns = [name for name in texts if name == domain or name not in domains]
    with closing(opened(args, [path])) as engine:
        [index] = engine.indexes
        says = {name: index_scores(index.file, texts[name].tokens, texts[name].windows) for name in columns}
        table[f"base + {label}"] = {name: auto(engine, texts[name], says[name]) for name in columns}
        table[f"base + {label}"] |= costs | {"us a look-up": look_up(index, texts[domain])}
    if args.memory:
        with closing(opened(args, [args.memory, path])) as engine:
            row = {name: auto(engine, texts[name], says[name]) for name in columns}
            table[f"base + memory + {label}"] = dict(row)


def look_up(index: Index, text: Text) -> float:
    """Microseconds of a token and its match, mean over the text's first PROBED tokens, the best of three rounds."""
    best = float("inf")
    for _ in range(3):
        matcher, begin = Matcher(index.file), perf_counter()
        for token in text.tokens[:PROBED]:
            matcher.extend([token])
            matcher.match()
        best = min(best, 1e6 * (perf_counter() - begin) / len(text.tokens[:PROBED]))
    return best


def shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    main()
