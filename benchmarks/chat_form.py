"""Should a part of the training text be questions and answers in the base's chat template?

    python benchmarks/chat_form.py OUT --corpus DIR [--base GGUF] [--tokens 24577] [--epochs 2] [--shares 0.25 0.5]
                                   [--score 4096] [--split valid] [--steps N]

A memory learns the text alone, and one for each share learns that share of it in the template, from as many tokens in
as many steps (beta 0). Each is scored beside the base on held-out text as it stands, on held-out answers in the
template ("anaemia" -> the passage below that title), and on the same with another wording ("What is anaemia?"). Lambda
is the best on validation text. Ratios and their standard errors are paired, against the memory of text alone. OUT
keeps the memories: another --split scores them and trains nothing. The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from provenance import made_by

from memdec_edge.chat import Transcriber, Transcript
from memdec_edge.convert import convert
from memdec_edge.documents import GENERAL, Document, parts_of, read_documents, split_documents
from memdec_edge.engine import Engine
from memdec_edge.evaluation.answers import score_answers
from memdec_edge.evaluation.perplexity import TokenScores, perplexity, score_tokens
from memdec_edge.mixture.weights import Mixture, best_lambda
from memdec_edge.options import (
    LAMBDAS,
    CacheOptions,
    ConvertOptions,
    EvalOptions,
    LoadOptions,
    MemoryOptions,
    TrainOptions,
)
from memdec_edge.train import train_apart
from memdec_edge.workflow.demo import demo_base

WORDING = "What is {}?"
VALIDATED = 1024  # positions that training scores by itself: one epoch leaves it little to choose


def memory(args: argparse.Namespace, share: float | None) -> Path:
    """The memory of a side, trained where it is not there; None: of text alone."""
    folder = args.out / ("text" if share is None else f"chat-{share:g}")
    gguf: Path = folder / f"memdec-{folder.name}.gguf"
    if not gguf.exists():
        cache = CacheOptions(
            args.base, args.corpus, folder / "cache", block=256, batch=4, max_tokens=args.tokens,
            chat_base=None if share is None else args.base, chat_share=share or 0.0,
        )  # fmt: skip
        options = TrainOptions(
            cache,
            folder / "memory",
            beta=0.0,
            epochs=args.epochs,
            steps=args.steps,
            lr=2e-4,
            valid_every=0,
            valid_positions=VALIDATED,
        )
        report = train_apart(options)
        convert(ConvertOptions(report.path, gguf, "q8_0", base=args.base, verify=False))
    return gguf


def chats(transcriber: Transcriber, documents: list[Document], wording: str) -> Iterator[Transcript]:
    """The chats of documents, the first question of each put into other words."""
    for document in documents:
        for part in parts_of(document):
            if part.turns:
                (role, question), *rest = part.turns
                found = transcriber.write([(role, wording.format(question)), *rest])
                if found:
                    yield found


def scored(args: argparse.Namespace, ggufs: list[Path]) -> tuple[dict[str, TokenScores], list[float]]:
    """Scores of base and memories on each kind of text, and each memory's lambda that is best on validation text."""
    limits, splits = EvalOptions(max_tokens=args.score), split_documents(args.corpus, 0.05, 0.05, 0)
    memories = [MemoryOptions(gguf, 0.0) for gguf in ggufs]
    with (
        closing(Engine(args.base, memories, LoadOptions(n_ctx=EvalOptions.window))) as engine,
        closing(Transcriber(args.base)) as transcriber,
    ):
        texts = {name: [each.text for each in splits[name]] for name in ("valid", args.split)}
        plain = {name: score_tokens(engine, some, limits) for name, some in texts.items()}
        found = {"text": plain[args.split], "general": score_tokens(engine, read_documents(GENERAL), EvalOptions())}
        for name, wording in (("answers", "{}"), ("in other words", WORDING)):
            scores = score_answers(engine, chats(transcriber, splits[args.split], wording), args.score)
            assert scores, f"{args.corpus} asks nothing"
            found[name] = scores
        return found, [
            best_lambda(of(plain["valid"], i).sweep(Mixture((1.0,), (1.0,)), LAMBDAS)) for i in range(len(ggufs))
        ]


def of(scores: TokenScores, memory: int) -> TokenScores:
    """The scores of the base and one memory."""
    return replace(scores, memories=[scores.memories[memory]])


def figures(scores: TokenScores, lambdas: list[float], memory: int) -> dict[str, Any]:
    """What one memory is worth on a kind of text, beside the first one, which learned text alone."""
    mine, plain = of(scores, memory), of(scores, 0)
    mixed = mine.mixed([lambdas[memory]])
    pairs = {
        "memory": mine.memories[0] - plain.memories[0],
        "mixture": mixed - plain.mixed([lambdas[0]]),
    }
    return {
        "tokens": len(scores.base),
        "base": asdict(mine.score([0.0])),
        "memory": asdict(mine.score([1.0])),
        "mixture": asdict(mine.score_of(mixed)),
        "ratio": {name: perplexity(difference, scores.windows) for name, difference in pairs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path, required=True, help="with a train, a valid and a test split")
    parser.add_argument("--base", type=Path, default=demo_base())
    parser.add_argument("--tokens", type=int, default=24_577, help="of training, template text counted")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=0, help="instead of epochs")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--score", type=int, default=4096, help="tokens of each kind of text")
    parser.add_argument("--split", choices=("valid", "test"), default="valid")
    args = parser.parse_args()

    sides = {"text": memory(args, None), **{f"chat {share:g}": memory(args, share) for share in args.shares}}
    found, lambdas = scored(args, list(sides.values()))
    rows: dict[str, dict[str, Any]] = {
        name: {"lambda": lambdas[i], **{kind: figures(scores, lambdas, i) for kind, scores in found.items()}}
        for i, name in enumerate(sides)
    }
    print(made_by(), end="")
    print(f"{'':16}{'trained on':12}{'base':>9}{'memory':>9}{'mixture':>9}   memory and mixture against those of text")
    for kind in found:
        for name, row in rows.items():
            values = row[kind]
            scores = "".join(f"{values[voice]['perplexity']:9.3f}" for voice in ("base", "memory", "mixture"))
            ratios = "   ".join(
                f"{100 * (ratio - 1):+6.2f} % ± {100 * error:.2f}" for ratio, error in values["ratio"].values()
            )
            print(f"{kind:16}{name:12}{scores}   {ratios}   lambda {row['lambda']:g}, {values['tokens']:,} tokens")
    print(json.dumps({"benchmark": "chat_form", "split": args.split, "tokens": args.tokens, "rows": rows}))


if __name__ == "__main__":
    main()
