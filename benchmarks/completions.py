"""Is text better with a memory or an index, and do they spoil other text? A larger model of another family judges.

    python benchmarks/completions.py BASE.gguf MEMORY.gguf INDEX.gguf JUDGE.gguf --text NAME=PATH [NAME=PATH ...]
                                     --out FILE.csv [--prompts 200] [--tokens 48] [--side 2] [--threads 0]

Each text gives --prompts prompts: the first 32 tokens of paragraphs, evenly spaced. Five systems continue each by
--tokens tokens, with the default sampling and one seed: the base alone, the memory with fixed weights (what it
recommends), and with weights that learn memory, index, and both. JUDGE gives the perplexity of what they wrote after
the prompt, by its own tokenizer. Rows: each text and system, with the mean difference to the base in nats a token and
its standard error over prompts. Beside them the longest run of written tokens that stands in the index's documents
(median, largest), the share of 8-grams that the same continuation had before (loops), and the share of tokens with a
source. FILE.jsonl keeps what was written and judged, a line for each prompt, in an order that makes any part of it
even: stopped, the script goes on from there. The last line is one JSON object.
"""

import argparse
import json
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from provenance import write_rows

from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine, MemoryMixture, Session
from memdec_edge.engine.blend import resolve
from memdec_edge.engine.lookup import Source, passages
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.mixture.match import Matcher
from memdec_edge.mixture.mixing import row_stats
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, MixtureOptions, SamplingOptions

PROMPT = 32  # tokens
GRAM = 8  # tokens: one of them again is a loop
SYSTEMS = ("base", "fixed", "auto", "index", "both")
Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("memory", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("judge", type=Path)
    parser.add_argument("--text", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--side", type=int, default=2, help="prompts that are continued side by side")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    kept = args.out.with_suffix(".jsonl")
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    known = {(line["text"], line["number"]) for line in lines}
    n = len(SYSTEMS) * args.side
    load = LoadOptions(n_seq=n, n_ctx=n * (PROMPT + args.tokens), threads=args.threads)
    with ExitStack() as stack:
        engine = stack.enter_context(
            closing(Engine(args.base, [MemoryOptions(args.memory), MemoryOptions(args.index)], load))
        )
        model = stack.enter_context(closing(Model(args.judge)))
        judge = stack.enter_context(closing(Context(model, LoadOptions(threads=args.threads), 1024)))
        prompts = {
            name: beginnings(engine, read_documents(Path(path)), args.prompts)
            for name, path in (text.split("=", 1) for text in args.text)
        }
        order = spread(args.prompts)
        for group in (order[at : at + args.side] for at in range(0, len(order), args.side)):
            for name, found in prompts.items():
                wanted = [index for index in group if index < len(found) and (name, index) not in known]
                for index, line in zip(wanted, write(engine, [found[at] for at in wanted], args.tokens), strict=True):
                    line |= {"text": name, "number": index}
                    line["nats"], line["judged"] = scores(judge, line)
                    lines.append(line)
                    with kept.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
            table = [row for name in prompts for row in rows(name, [line for line in lines if line["text"] == name])]
            write_rows(args.out, table)
    print(args.out.read_text(encoding="utf-8"))
    print(json.dumps({"benchmark": "completions", "rows": table}))


def beginnings(engine: Engine, documents: list[str], count: int) -> list[list[int]]:
    """The first tokens of `count` paragraphs that have twice as many, evenly spaced."""
    paragraphs = [part for document in documents for part in document.split("\n\n") if len(part) > 300]
    step = max(len(paragraphs) // count, 1)
    tokens = [engine.base.tokenize(part) for part in paragraphs[::step][:count]]
    return [ids[:PROMPT] for ids in tokens if len(ids) >= 2 * PROMPT]


def spread(count: int) -> list[int]:
    """0 to count - 1, so ordered that any beginning is spread over the whole."""
    return sorted(range(count), key=lambda index: (index * 0.6180339887) % 1)


def write(engine: Engine, prompts: list[list[int]], n_tokens: int) -> list[Line]:
    """The text of each prompt and what each system makes of it, all side by side."""
    mixtures = systems(engine)
    generation = GenerationOptions(ignore_eos=True, draft=0)
    with ExitStack() as stack:
        sessions = []
        for seed, prompt in enumerate(prompts):
            for mixture in mixtures.values():
                session = engine.session(
                    prompt, SamplingOptions(seed=seed), generation, mixture=mixture, limit=len(prompt) + n_tokens
                )
                sessions.append(stack.enter_context(closing(session)))
        for session in sessions:
            session.prefill()
        while not all(session.finished for session in sessions):
            engine.step(sessions)
        written = [seen(engine, session) for session in sessions]
    n = len(SYSTEMS)
    return [
        {"prompt": text_of(engine, prompt)} | dict(zip(SYSTEMS, written[n * number : n * number + n], strict=True))
        for number, prompt in enumerate(prompts)
    ]


def systems(engine: Engine) -> dict[str, MemoryMixture]:
    memories, indexes, learning = engine.memories, engine.indexes, MixtureOptions()
    mixtures = (
        MemoryMixture.of(()), resolve(memories), resolve(memories, (), learning), resolve((), indexes, learning),
        resolve(memories, indexes, learning),
    )  # fmt: skip
    return dict(zip(SYSTEMS, mixtures, strict=True))


def seen(engine: Engine, session: Session) -> Line:
    """What a session wrote, and how much of it stands in the documents or in itself."""
    tokens, [index] = session.tokens[PROMPT:], engine.indexes
    run, matcher = 0, Matcher(index.file)
    for token in tokens:
        matcher.extend([token])
        run = max(run, matcher.match().length)
    source: Source | None = None
    sourced, found = 0, list[Source]()
    for length in range(PROMPT + 1, len(session.tokens) + 1):
        source = session.lookup.source(session.tokens, length, source)
        sourced += source is not None
        found = passages(found, source)
    grams = [tuple(tokens[at : at + GRAM]) for at in range(len(tokens) - GRAM + 1)]
    return {
        "text": text_of(engine, tokens), "run": run, "loops": 1 - len(set(grams)) / max(len(grams), 1),
        "sourced": sourced / len(tokens), "weights": [round(weight, 4) for weight in session.mixture.weights],
        "passages": [[each.document, each.start, each.end] for each in found],
    }  # fmt: skip


def text_of(engine: Engine, tokens: list[int]) -> str:
    return b"".join(map(engine.base.piece, tokens)).decode("utf-8", "replace")


def scores(judge: Context, line: Line) -> tuple[dict[str, float], dict[str, int]]:
    """Nats that the judge needs for each system's text after the prompt, and the tokens that it has there."""
    begin = judge.model.tokenize(line["prompt"])
    nats, counts = {}, {}
    for system in SYSTEMS:
        tokens = judge.model.tokenize(line[system]["text"], add_special=False, parse_special=False)
        judge.prefill(begin[:-1])
        total = 0.0
        for token, row in zip(tokens, judge.feed_rows([begin[-1], *tokens[:-1]]), strict=True):
            total -= float(row[token]) - row_stats(row, len(row), 1.0).logsumexp
        nats[system], counts[system] = round(total, 4), len(tokens)
    return nats, counts


def values(lines: list[Line], system: str, key: str) -> list[float]:
    return [line[system][key] for line in lines]


def rows(name: str, lines: list[Line]) -> list[Line]:
    """What a text's lines say of each system."""
    found = []
    for system in SYSTEMS if lines else ():
        nats, counts = (np.array([line[key][system] for line in lines], float) for key in ("nats", "judged"))
        base, n_base = (np.array([line[key]["base"] for line in lines], float) for key in ("nats", "judged"))
        gap = nats / counts - base / n_base
        of = partial(values, lines, system)
        found.append(
            {
                "text": name,
                "system": system,
                "prompts": len(lines),
                "perplexity": round(float(np.exp(nats.sum() / counts.sum())), 3),
                "nats_to_base": round(float(gap.mean()), 4),
                "standard_error": round(float(gap.std(ddof=1) / len(gap) ** 0.5) if len(gap) > 1 else 0.0, 4),
                "run_median": float(np.median(of("run"))),
                "run_most": int(max(of("run"))),
                "loops": round(float(np.mean(of("loops"))), 4),
                "sourced": round(float(np.mean(of("sourced"))), 4),
            }
        )
    return found


if __name__ == "__main__":
    main()
