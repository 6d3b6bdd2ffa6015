"""Is text better with a memory or an index, and do they spoil other text? A larger model of another family judges.

    python benchmarks/completions.py BASE.gguf MEMORY.gguf INDEX.gguf JUDGE.gguf --text NAME=PATH [NAME=PATH ...]
                                     --out FILE.csv [--prompts 200] [--tokens 48] [--side 2] [--threads 0]

Each text gives --prompts prompts: the first 32 tokens of paragraphs, evenly spaced. Five systems continue each by
--tokens tokens, with the default sampling and one seed: the base alone, the memory with fixed weights (what it
recommends), and with weights that learn memory, index, and both. The sixth, text, is how the document itself goes on.
JUDGE gives the perplexity of what stands after the prompt, by its own tokenizer. Rows: each text and system, with the
mean difference to the base in nats a token and its standard error over prompts. Beside them the longest run of written
tokens that stands in the index's documents (median, largest), the share of 8-grams that the same continuation had
before (loops), and the share of tokens with a source. FILE.jsonl keeps what was written and judged, a line for each
prompt and system, in an order that makes any part of it even: stopped, the script goes on from there. The last line is
one JSON object.
"""

import argparse
import json
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from provenance import write_rows

from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine, MemoryMixture, Session
from memdec_edge.engine.blend import resolve
from memdec_edge.engine.lookup import Lookup, Source, passages
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.mixture.match import Matcher
from memdec_edge.mixture.mixing import row_stats
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, MixtureOptions, SamplingOptions

PROMPT = 32  # tokens
GRAM = 8  # tokens: one of them again is a loop
TEXT = "text"
SYSTEMS = ("base", "fixed", "auto", "index", "both", TEXT)
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
    known = {(line["of"], line["number"], line["system"]) for line in lines}
    n = len(SYSTEMS) * args.side
    load = LoadOptions(n_seq=n, n_ctx=n * (PROMPT + args.tokens), threads=args.threads)
    with ExitStack() as stack:
        engine = stack.enter_context(
            closing(Engine(args.base, [MemoryOptions(args.memory), MemoryOptions(args.index)], load))
        )
        model = stack.enter_context(closing(Model(args.judge)))
        judge = stack.enter_context(closing(Context(model, LoadOptions(threads=args.threads), 1024)))
        paragraphs = {
            name: beginnings(engine, read_documents(Path(path)), args.prompts, args.tokens)
            for name, path in (text.split("=", 1) for text in args.text)
        }
        order = spread(args.prompts)
        for group in (order[at : at + args.side] for at in range(0, len(order), args.side)):
            for name, found in paragraphs.items():
                wanted = [
                    (number, system)
                    for number in group
                    for system in SYSTEMS
                    if number < len(found) and (name, number, system) not in known
                ]
                for line in write(engine, found, wanted, args.tokens):
                    line |= {"of": name}
                    line["nats"], line["judged"] = score(judge, line["prompt"], line["text"])
                    lines.append(line)
                    with kept.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
            table = [row for name in paragraphs for row in rows(name, [line for line in lines if line["of"] == name])]
            write_rows(args.out, table)
    print(args.out.read_text(encoding="utf-8"))
    print(json.dumps({"benchmark": "completions", "rows": table}))


def beginnings(engine: Engine, documents: list[str], count: int, n_tokens: int) -> list[list[int]]:
    """A prompt and how it goes on, of `count` paragraphs that have twice the tokens of a prompt, evenly spaced."""
    paragraphs = [part for document in documents for part in document.split("\n\n") if len(part) > 300]
    step = max(len(paragraphs) // count, 1)
    tokens = [engine.base.tokenize(part) for part in paragraphs[::step][:count]]
    return [ids[: PROMPT + n_tokens] for ids in tokens if len(ids) >= 2 * PROMPT]


def spread(count: int) -> list[int]:
    """0 to count - 1, so ordered that any beginning is spread over the whole."""
    return sorted(range(count), key=lambda index: (index * 0.6180339887) % 1)


def write(engine: Engine, texts: list[list[int]], wanted: list[tuple[int, str]], n_tokens: int) -> list[Line]:
    """What the wanted systems make of the prompts that the numbers name, all side by side."""
    mixtures = systems(engine)
    generation = GenerationOptions(ignore_eos=True, draft=0)
    with ExitStack() as stack:
        sessions: dict[tuple[int, str], Session] = {}
        for number, system in wanted:
            if system != TEXT:
                session = engine.session(
                    texts[number][:PROMPT], SamplingOptions(seed=number), generation,
                    mixture=mixtures[system], limit=PROMPT + n_tokens,
                )  # fmt: skip
                sessions[number, system] = stack.enter_context(closing(session))
        for session in sessions.values():
            session.prefill()
        while not all(session.finished for session in sessions.values()):
            engine.step(list(sessions.values()))
        return [
            {"number": number, "system": system}
            | seen(engine, sessions[number, system].tokens if system != TEXT else texts[number])
            for number, system in wanted
        ]


def systems(engine: Engine) -> dict[str, MemoryMixture]:
    memories, indexes, learning = engine.memories, engine.indexes, MixtureOptions()
    return {
        "base": MemoryMixture.of(()),
        "fixed": resolve(memories),
        "auto": resolve(memories, (), learning),
        "index": resolve((), indexes, learning),
        "both": resolve(memories, indexes, learning),
    }


def seen(engine: Engine, whole: list[int]) -> Line:
    """A prompt with what was written after it, and how much of that stands in the documents or in itself."""
    tokens, [index] = whole[PROMPT:], engine.indexes
    run, matcher = 0, Matcher(index.file)
    for token in tokens:
        matcher.extend([token])
        run = max(run, matcher.match().length)
    source: Source | None = None
    lookup, sourced, found = Lookup([index]), 0, list[Source]()
    for length in range(PROMPT + 1, len(whole) + 1):
        source = lookup.source(whole, length, source)
        sourced += source is not None
        found = passages(found, source)
    grams = [tuple(tokens[at : at + GRAM]) for at in range(len(tokens) - GRAM + 1)]
    return {
        "prompt": text_of(engine, whole[:PROMPT]), "text": text_of(engine, tokens), "run": run,
        "loops": 1 - len(set(grams)) / max(len(grams), 1), "sourced": sourced / len(tokens),
        "passages": [[each.document, each.start, each.end] for each in found],
    }  # fmt: skip


def text_of(engine: Engine, tokens: list[int]) -> str:
    return b"".join(map(engine.base.piece, tokens)).decode("utf-8", "replace")


def score(judge: Context, prompt: str, text: str) -> tuple[float, int]:
    """Nats that the judge needs for a text after a prompt, and the tokens that it has there."""
    begin = judge.model.tokenize(prompt)
    tokens = judge.model.tokenize(text, add_special=False, parse_special=False)
    judge.prefill(begin[:-1])
    total = 0.0
    for token, row in zip(tokens, judge.feed_rows([begin[-1], *tokens[:-1]]), strict=True):
        total -= float(row[token]) - row_stats(row, len(row), 1.0).logsumexp
    return round(total, 4), len(tokens)


def rows(name: str, lines: list[Line]) -> list[Line]:
    """What a text's lines say of each system, over the prompts that it and the base continued."""
    of = {system: {line["number"]: line for line in lines if line["system"] == system} for system in SYSTEMS}
    found = []
    for system, its in of.items():
        numbers = sorted(its.keys() & of["base"].keys())
        if not numbers:
            continue
        value = partial(column, its, numbers)
        nats, counts = value("nats"), value("judged")
        gap = nats / counts - column(of["base"], numbers, "nats") / column(of["base"], numbers, "judged")
        found.append(
            {
                "text": name,
                "system": system,
                "prompts": len(numbers),
                "perplexity": round(float(np.exp(nats.sum() / counts.sum())), 3),
                "nats_to_base": round(float(gap.mean()), 4),
                "standard_error": round(float(gap.std(ddof=1) / len(gap) ** 0.5) if len(gap) > 1 else 0.0, 4),
                "run_median": float(np.median(value("run"))),
                "run_most": int(value("run").max()),
                "loops": round(float(value("loops").mean()), 4),
                "sourced": round(float(value("sourced").mean()), 4),
            }
        )
    return found


def column(lines: dict[int, Line], numbers: list[int], key: str) -> npt.NDArray[np.float64]:
    return np.array([lines[number][key] for number in numbers], float)


if __name__ == "__main__":
    main()
