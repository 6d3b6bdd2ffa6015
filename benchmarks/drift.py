"""Where do the weights go while text is generated? Generated tokens are no evidence of the domain, but count a little.

    python benchmarks/drift.py BASE.gguf MEMORY.gguf --text NAME=PATH [NAME=PATH ...] --out FILE.csv [--prompts 8]
                               [--tokens 500] [--rates 0 0.1 1]

Each text gives --prompts prompts of 64 tokens. Each is continued by --tokens tokens at temperature 0, 0.8 and 1, at
each rate of generated tokens (MixtureOptions.generated). Rows: the memory's weight after the prompt and after some
numbers of generated tokens, as quantiles over the prompts. Sessions run side by side. The last line is one JSON object.
"""

import argparse
import csv
import json
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from provenance import made_by

from memdec_edge.bench.systems import cut_prompts
from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, MixtureOptions, SamplingOptions

PROMPT = 64  # tokens
TEMPERATURES = (0.0, 0.8, 1.0)
QUANTILES = (0.1, 0.5, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("memory", type=Path)
    parser.add_argument("--text", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.1, 1.0])
    args = parser.parse_args()
    load = LoadOptions(n_seq=args.prompts, n_ctx=args.prompts * (PROMPT + args.tokens))
    marks = [0, *(mark for mark in (25, 50, 100, 200, 350, 500) if mark <= args.tokens)]
    rows = []
    with closing(Engine(args.base, [MemoryOptions(args.memory)], load)) as engine:
        for name, path in (text.split("=", 1) for text in args.text):
            prompts = cut_prompts(engine, read_documents(Path(path)), PROMPT, args.prompts)
            for temperature in TEMPERATURES:
                for rate in args.rates:
                    weights = follow(engine, prompts, temperature, rate, args.tokens)[:, marks]
                    for mark, column in zip(marks, weights.T, strict=True):
                        found = dict(zip(("q10", "q50", "q90"), np.quantile(column, QUANTILES).round(4), strict=True))
                        rows.append({"text": name, "temperature": temperature, "rate": rate, "tokens": mark} | found)
    with args.out.open("w", newline="", encoding="utf-8") as file:
        file.write(made_by())
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(args.out.read_text(encoding="utf-8"))
    print(json.dumps({"benchmark": "drift", "rows": rows}))


def follow(
    engine: Engine, prompts: list[list[int]], temperature: float, rate: float, n_tokens: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The memory's weight after each prompt and after each generated token, [prompts, 1 + tokens]."""
    mixture = engine.mixture(MixtureOptions(generated=rate))
    generation = GenerationOptions(ignore_eos=True, draft=0)
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(
                closing(
                    engine.session(
                        prompt, SamplingOptions(temperature=temperature, seed=seed), generation, mixture=mixture,
                        limit=len(prompt) + n_tokens,
                    )
                )
            )
            for seed, prompt in enumerate(prompts)
        ]  # fmt: skip
        for session in sessions:
            session.prefill()
        found = [[sum(session.mixture.weights)] for session in sessions]
        while not all(session.finished for session in sessions):
            engine.step(sessions)
            for session, weights in zip(sessions, found, strict=True):
                weights.append(sum(session.mixture.weights))
    return np.array(found)


if __name__ == "__main__":
    main()
