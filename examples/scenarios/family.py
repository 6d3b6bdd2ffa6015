"""One memory against every base of its family: perplexity where lambda is tuned once, per base, and not at all.

    python examples/scenarios/family.py OUT MEMORY --valid TEXT --test TEXT [--general TEXT] [--tokens 8192]
                                        BASE [BASE ...]

Bases are GGUFs or names on the Hub (user/repo:quant), the smallest first; MEMORY is a memory or an index, named so too.
"first" mixes with the lambda that is best for the first base on the validation text. "own" takes the best for each
base, "auto" lets the weight follow the text, and nothing was tuned for it. All are scored on the test text, and on a
general one. "transfer" is what the first base's lambda costs another base, in per cent of its own lambda's perplexity,
with the paired standard error. OUT/family.json keeps all of it; the last line is the same object.
"""

import argparse
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from memdec_edge.cli.output import json_line
from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine
from memdec_edge.evaluation.perplexity import TokenScores, perplexity, scaled, score_tokens
from memdec_edge.files import write_text
from memdec_edge.hub import gguf_of, local, memory_of
from memdec_edge.mixture.weights import Mixture
from memdec_edge.options import LAMBDAS, EvalOptions, LoadOptions, MemoryOptions, MixtureOptions

WAYS = ("base", "memory", "first", "own", "auto")


class Scored:
    """What a base and the memory say of each text."""

    def __init__(self, base: Path, memory: Path, texts: dict[str, Path], options: EvalOptions) -> None:
        with closing(Engine(base, [MemoryOptions(memory)], LoadOptions(n_ctx=options.window))) as engine:
            self.whole: Mixture = engine.mixture(MixtureOptions(total=1.0)).mixture
            rule = engine.mixture(MixtureOptions()).rule()
            assert rule is not None  # nothing fixes the weights
            self.rule = rule
            self.texts: dict[str, TokenScores] = {
                name: score_tokens(engine, read_documents(text), options) for name, text in texts.items()
            }

    def best(self) -> float:
        """The lambda with the least perplexity on the validation text."""
        sweep = self.texts["valid"].sweep(self.whole, LAMBDAS)
        return min(sweep, key=sweep.__getitem__)

    def log_probs(self, text: str, first: float, own: float) -> dict[str, np.ndarray]:
        """Log-probs of the scored tokens in each of WAYS."""
        scores = self.texts[text]
        held = {name: scores.held(scaled(self.whole, value)) for name, value in (("first", first), ("own", own))}
        alone, auto = scores.held(self.whole), scores.learned(self.rule).log_probs
        return {"base": scores.base, "memory": alone, **held, "auto": auto}


def row(scored: Scored, text: str, first: float, own: float) -> dict[str, Any]:
    """The figures of one base on one text."""
    found, windows = scored.log_probs(text, first, own), scored.texts[text].windows
    figures: dict[str, Any] = {"text": text, "tokens": len(found["base"])}
    for way in WAYS:
        value, error = perplexity(found[way], windows)
        figures[way] = {"perplexity": value, "standard_error": error}
    ratio, error = perplexity(found["first"] - found["own"], windows)
    return figures | {"transfer": {"percent": 100 * (ratio - 1), "standard_error": 100 * error}}


def shown(value: float, error: float, digits: int = 2) -> str:
    """A figure and its error; a single window has none."""
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("memory", type=Path)
    parser.add_argument("bases", type=Path, nargs="+", metavar="BASE")
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--general", type=Path)
    parser.add_argument("--tokens", type=int, default=8192, help="of each text")
    parser.add_argument("--window", type=int, default=EvalOptions.window)
    options = parser.parse_args()
    texts = {"valid": options.valid, "test": options.test} | ({"general": options.general} if options.general else {})
    evaluation = EvalOptions(window=options.window, stride=options.window // 2, max_tokens=options.tokens)
    memory = local(options.memory, memory_of)

    print(f"{'base':26}{'text':9}{'lambda':>7}" + "".join(f"{way:>17}" for way in (*WAYS, "transfer, %")))
    bases: list[dict[str, Any]] = []
    for base in options.bases:
        scored = Scored(local(base, gguf_of), memory, texts, evaluation)
        own = scored.best()
        first = bases[0]["lambda"] if bases else own
        rows = [row(scored, text, first, own) for text in texts if text != "valid"]
        bases.append({"base": str(base), "lambda": own, "rows": rows})
        for each in rows:
            line = f"{base.name[-25:]:26}{each['text']:9}{own:7.2f}"
            line += "".join(f"{shown(*each[way].values()):>17}" for way in WAYS)
            print(line + f"{shown(*each['transfer'].values()):>17}", flush=True)
    report = json_line({"memory": str(options.memory), "window": options.window, "bases": bases})
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "family.json", report + "\n")
    print(report)


if __name__ == "__main__":
    main()
