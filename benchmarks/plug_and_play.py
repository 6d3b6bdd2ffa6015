"""Does a memory that learned from a small model help a larger one of the family, which it has never seen?

    python benchmarks/plug_and_play.py --teacher SMALL.gguf --base LARGE.gguf --corpus DIR --out DIR [--tokens 24000]
                                       [--steps 48] [--beta 0.25] [--score 4096]

The teacher is the small GGUF, in llama.cpp; the memory starts as a copy of it and is converted to Q8_0. Lambda is
chosen on the validation split, and base, memory and mixture are scored on the test split at that lambda. Run again it
goes on. The last line is one JSON object.
"""

import argparse
import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from memdec_edge.convert import convert
from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine
from memdec_edge.evaluation.perplexity import TokenScores, score_tokens
from memdec_edge.mixture.weights import Mixture
from memdec_edge.options import (
    LAMBDAS,
    CacheOptions,
    ConvertOptions,
    EvalOptions,
    LoadOptions,
    MemoryOptions,
    TrainOptions,
)
from memdec_edge.train import train


def scores(base: Path, memory: Path, text: Path, tokens: int) -> TokenScores:
    """Log-probs of base and memory on `tokens` of a text."""
    load = LoadOptions(n_ctx=EvalOptions.window)
    with closing(Engine(base, [MemoryOptions(memory, 0.0)], load)) as engine:
        return score_tokens(engine, read_documents(text), EvalOptions(max_tokens=tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "base", "corpus", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=24_000, help="of training text")
    parser.add_argument("--steps", type=int, default=48, help="of 4 blocks of 256 tokens")
    parser.add_argument("--beta", type=float, default=0.25)
    parser.add_argument("--score", type=int, default=4096, help="tokens of validation and of test text")
    options = parser.parse_args()

    cache = CacheOptions(
        options.teacher, options.corpus, options.out / "cache", k=256, block=256, max_tokens=options.tokens,
        finetune_teacher=0, target="knn",
    )  # fmt: skip
    recipe = TrainOptions(
        cache, options.out / "memory", steps=options.steps, beta=options.beta, lr=1e-4, save_every=12, valid_every=0
    )
    report = train(recipe)
    gguf = options.out / "memdec-memory.gguf"
    if not gguf.exists():
        convert(ConvertOptions(report.path, gguf, "q8_0", base=options.teacher, verify=False))
    sweep = scores(options.base, gguf, options.corpus / "valid.jsonl", options.score).sweep(
        Mixture((1.0,), (1.0,)), LAMBDAS
    )
    weight = min(sweep, key=sweep.__getitem__)
    test = scores(options.base, gguf, options.corpus / "test.jsonl", options.score)
    found = {"base": test.score([0.0]), "memory": test.score([1.0]), "mixture": test.score([weight])}
    for name, score in found.items():
        print(f"{name:8} perplexity {score.perplexity:.3f} ± {score.standard_error:.3f}")
    print(
        json.dumps(
            {
                "teacher": options.teacher.name,
                "base": options.base.name,
                "corpus": options.corpus.name,
                "training_tokens": report.tokens,
                "beta": options.beta,
                "lambda": weight,
                "scored": len(test.base),
                **{name: asdict(score) for name, score in found.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
