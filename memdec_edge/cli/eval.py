"""The command eval: perplexity on a text. Knows nothing of how it is measured."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from memdec_edge.cli.common import (
    Base,
    Json,
    Lambda,
    Memories,
    Scaled,
    Verbose,
    check_lambda,
    memory_options,
    set_verbose,
    warn,
)
from memdec_edge.cli.flags import Flags, Given, spread
from memdec_edge.cli.output import print_json
from memdec_edge.options import EvalOptions, LoadOptions


@spread
def eval_(
    *,
    model: Base,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Text: .txt, .md, .jsonl, or a folder of them.")],
    memory: Memories = None,
    scaled: Scaled = None,
    total: Lambda = None,
    evaluation: Given[EvalOptions],
    load: Annotated[Callable[..., LoadOptions], Flags("n_ctx")],
    verbose: Verbose = False,
    json_: Json = False,
) -> None:
    """Perplexity of base, memories and mixture on a text.

    A sweep over lambda comes with it. Of a folder with split files the test split is scored.
    """
    options, chosen = evaluation(), memory_options(memory, scaled)
    loading = load(n_ctx=options.window)
    check_lambda(total)
    set_verbose(verbose)
    from memdec_edge.documents import read_documents
    from memdec_edge.engine import Engine
    from memdec_edge.evaluation.perplexity import evaluate

    documents = read_documents(path)
    with closing(Engine(model, chosen, loading)) as engine:
        warn(engine.warnings)
        found = evaluate(engine, documents, options, total)
    scores = {"base": found.base, "memory": found.memory, "mixture": found.mixture}
    print(f"{found.tokens} of {found.text_tokens} tokens scored, window {options.window}, stride {options.stride}")
    for name, score in scores.items():
        if score:
            print(
                f"{name:8} perplexity {score.perplexity:9.3f} ± {score.standard_error:.3f}   "
                f"bits per byte {score.bits_per_byte:.4f}" + (f"   lambda {found.weight:g}" * (name == "mixture"))
            )
    for value, perplexity in found.lambda_sweep.items():
        print(f"lambda {value:<4g} perplexity {perplexity:9.3f}")
    if json_:
        report = {
            "tokens": found.tokens,
            "text_tokens": found.text_tokens,
            "lambda": found.weight,
            **{
                field: {name: score and getattr(score, field) for name, score in scores.items()}
                for field in ("perplexity", "standard_error", "bits_per_byte")
            },
            "lambda_sweep": [{"lambda": key, "perplexity": value} for key, value in found.lambda_sweep.items()],
            "window": options.window,
            "stride": options.stride,
        }
        print_json(report)
