"""Where do the weights go while text is generated, and do they follow a change of subject afterwards?

    python benchmarks/drift.py BASE.gguf MEMORY.gguf --text NAME=PATH NAME=PATH --out FILE.csv [--prompts 8]
                               [--tokens 500] [--rates 0 0.1 1] [--threads 0]

Two texts, one of the memory's domain, give --prompts prompts of 64 tokens each. Each is continued by --tokens tokens at
temperature 0, 0.8 and 1, at each rate of generated tokens (MixtureOptions.generated). Then the session reads 64 tokens
of the other text, as if a user changed the subject. Rows: the memory's weight, as quantiles over the prompts, after the
prompt ("0"), after numbers of generated tokens, and after the other text ("turn"). At rate 0 the weights are frozen, so
nothing is generated. Sessions run side by side. The last line is one JSON object; FILE.png has the same as a plot.
"""

import argparse
import csv
import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from provenance import made_by

from memdec_edge.bench.systems import cut_prompts
from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, MixtureOptions, SamplingOptions

PROMPT = 64  # tokens, of a turn too
TEMPERATURES = (0.0, 0.8, 1.0)
QUANTILES = {"q10": 0.1, "q50": 0.5, "q90": 0.9}
MARKS = (0, 25, 50, 100, 150, 200, 250, 300, 350, 400, 450, 500)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("memory", type=Path)
    parser.add_argument("--text", nargs=2, required=True, metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.1, 1.0])
    args = parser.parse_args()
    load = LoadOptions(n_seq=args.prompts, n_ctx=args.prompts * (2 * PROMPT + args.tokens), threads=args.threads)
    rows: list[Row] = []
    with closing(Engine(args.base, [MemoryOptions(args.memory)], load)) as engine:
        prompts = {}
        for name, path in (text.split("=", 1) for text in args.text):
            prompts[name] = cut_prompts(engine, read_documents(Path(path)), PROMPT, args.prompts)
        for temperature in TEMPERATURES:
            for name, other in (list(prompts), list(prompts)[::-1]):
                for rate in args.rates:
                    n_tokens = args.tokens if rate else 0
                    weights = follow(engine, prompts[name], prompts[other], temperature, rate, n_tokens)
                    kept = {"text": name, "temperature": temperature, "rate": rate}
                    rows += [kept | quantiles(mark, weights[:, mark]) for mark in MARKS if mark <= n_tokens]
                    rows.append(kept | quantiles("turn", weights[:, -1]))
                    write(args.out, rows)
    plot(args.out.with_suffix(".png"), rows)
    print(json.dumps({"benchmark": "drift", "rows": rows}))


def follow(
    engine: Engine, prompts: list[list[int]], turns: list[list[int]], temperature: float, rate: float, n_tokens: int
) -> npt.NDArray[np.float64]:
    """The memory's weight after each prompt, each generated token and each turn, [prompts, 1 + tokens + 1]."""
    mixture = engine.mixture(MixtureOptions(generated=rate))
    generation = GenerationOptions(ignore_eos=True, draft=0)
    with ExitStack() as stack:
        sessions = []
        for seed, (prompt, turn) in enumerate(zip(prompts, turns, strict=True)):
            sampling, limit = SamplingOptions(temperature=temperature, seed=seed), len(prompt) + n_tokens + len(turn)
            session = engine.session(prompt, sampling, generation, mixture=mixture, limit=limit)
            sessions.append(stack.enter_context(closing(session)))
        for session in sessions:
            session.prefill()
        found = [[sum(session.mixture.weights)] for session in sessions]
        for _ in range(n_tokens):
            engine.step(sessions)
            for session, weights in zip(sessions, found, strict=True):
                weights.append(sum(session.mixture.weights))
        for session, turn, weights in zip(sessions, turns, found, strict=True):
            if not n_tokens:  # hundreds of frozen tokens would fill the window before the turn
                session.mix(engine.mixture(MixtureOptions(generated=rate, evidence=len(turn))))
            session.extend(turn)
            session.prefill()
            weights.append(sum(session.mixture.weights))
    return np.array(found)


def quantiles(mark: int | str, weights: npt.NDArray[np.float64]) -> Row:
    """What a row says of the weights at one place, [prompts]."""
    return {"tokens": mark} | {name: round(float(np.quantile(weights, at)), 4) for name, at in QUANTILES.items()}


def write(out: Path, rows: list[Row]) -> None:
    with out.open("w", newline="", encoding="utf-8") as file:
        file.write(made_by())
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def plot(path: Path, rows: list[Row]) -> None:
    """A panel for each text and temperature, a band from the first to the last quantile for each rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    last = max(row["tokens"] for row in rows if row["tokens"] != "turn")
    texts, rates = list(dict.fromkeys(row["text"] for row in rows)), sorted({row["rate"] for row in rows})
    figure, panels = pyplot.subplots(len(texts), len(TEMPERATURES), figsize=(11, 6), sharex=True, sharey=True)
    for line, text in zip(panels, texts, strict=True):
        for axes, temperature in zip(line, TEMPERATURES, strict=True):
            for number, rate in enumerate(rates):
                mine = [
                    row for row in rows if (row["text"], row["temperature"], row["rate"]) == (text, temperature, rate)
                ]
                path_of = [row for row in mine if row["tokens"] != "turn"]
                x = [row["tokens"] for row in path_of] if rate else [0, last]
                low, middle, high = ([row[name] for row in path_of] * (1 if rate else 2) for name in QUANTILES)
                axes.fill_between(x, low, high, alpha=0.2, color=f"C{number}")
                axes.plot(x, middle, color=f"C{number}", label=f"rate {rate:g}")
                after, at = mine[-1], x[-1] * (1.06 + 0.03 * number)
                axes.errorbar(
                    [at], [after["q50"]], [[after["q50"] - after["q10"]], [after["q90"] - after["q50"]]],
                    fmt="o", color=f"C{number}",
                )  # fmt: skip
            axes.set_title(f"{text}, temperature {temperature:g}")
            axes.set_ylim(0, 1)
    panels[0][0].set_ylabel("weight of the memory")
    panels[-1][0].set_xlabel("generated tokens; points: after 64 tokens of the other text")
    panels[0][-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
