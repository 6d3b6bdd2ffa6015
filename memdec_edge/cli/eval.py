"""The command eval: perplexity on a text. Knows nothing of how it is measured."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memdec_edge.cli.flags import Flags, Given, spread
from memdec_edge.cli.output import print_json, warn
from memdec_edge.cli.parameters import (
    Base,
    Json,
    Memories,
    Scaled,
    Verbose,
    base_file,
    memory_files,
    memory_options,
    set_verbose,
)
from memdec_edge.options import EvalOptions, LoadOptions, MixtureOptions

if TYPE_CHECKING:
    from memdec_edge.documents import File
    from memdec_edge.evaluation.perplexity import Evaluation, Score


@spread
def eval_(
    *,
    model: Base,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Text: a file, a zip or a folder of them.")],
    memory: Memories = None,
    scaled: Scaled = None,
    weights: Annotated[Callable[..., MixtureOptions], Flags("evidence")],
    evaluation: Given[EvalOptions],
    load: Annotated[Callable[..., LoadOptions], Flags("n_ctx")],
    verbose: Verbose = False,
    json_: Json = False,
) -> None:
    """Measure the perplexity of base, memories, indexes and mixture on a text.

    A sweep over lambda comes with it. Of a folder with split files the test split is scored.
    """
    named, options, mixture, chosen = model(), evaluation(), weights(), memory_options(memory, scaled)
    loading = load(n_ctx=options.window)
    set_verbose(verbose)
    from memdec_edge.documents import read_documents, scored_files
    from memdec_edge.engine import Engine
    from memdec_edge.evaluation.perplexity import evaluate

    documents = read_documents(path)
    base, chosen = base_file(named), memory_files(chosen)
    with closing(Engine(base, chosen, loading)) as engine:
        warn(engine.warnings)
        _warn_of_seen_text(scored_files(path), [each.path for each in chosen], {each.path for each in engine.indexes})
        found = evaluate(engine, documents, options, mixture)
    _print_table(found, options)
    if json_:
        print_json(_report(found, options))


def _warn_of_seen_text(files: "list[File]", memories: list[Path], indexes: set[Path]) -> None:
    """Say on stderr that a low perplexity may come from text learned by heart, or held by an index."""
    from memdec_edge.documents import file_digests
    from memdec_edge.documents.splits import split_of
    from memdec_edge.gguf.origin import texts_seen

    texts = {digest: file.name for file, digest in file_digests(files).items()} if memories else {}
    seen = {texts[digest]: memory for memory in memories for digest in texts_seen(memory) if digest in texts}
    warn(
        f"{memory} {'holds' if memory in indexes else 'was trained on'} {name}, so its perplexity there says little of "
        f"other text; score held-out text{'' if memory in indexes else ', such as test.jsonl of its cache folder'}"
        for name, memory in seen.items()
    )
    if memories and not seen and any(split_of(file.path.name) == ("", "train") for file in files):
        warn(["this is a training split; a memory that has seen it scores too well, so score a test split"])


def _print_table(found: "Evaluation", options: EvalOptions) -> None:
    """Print what was scored, a row for each model, and the sweep over lambda."""
    print(f"{found.tokens} of {found.text_tokens} tokens scored, window {options.window}, stride {options.stride}")
    for name, score in _scores(found).items():
        if score:
            error = _spread(score.standard_error, 3)
            weight = f"   lambda {found.weight:g}" if name == "mixture" else ""
            print(
                f"{name:8} perplexity {score.perplexity:9.3f}{error}   bits per byte {score.bits_per_byte:.4f}{weight}"
            )
    if found.auto_ratio:
        ratio, standard_error = found.auto_ratio
        print(
            f"auto is {ratio:.4f}{_spread(standard_error, 4)} times the mixture's perplexity; "
            "mean weights of base, memories and indexes: " + ", ".join(f"{weight:.2f}" for weight in found.auto_weights)
        )
        worse = ", ".join(f"{name} {share:.1%}" for name, share in found.worse_share.items())
        print(f"tokens that lose more than 0.1 nat against the base: {worse}")
    for each in found.matches:
        low, high = each.lengths
        lengths = "no match" if not high else f"match of {low}" if low == high else f"match of {low} to {high}"
        right = f", {each.right:.0%} continued right, the indexes weigh {each.weight:.2f}" if high else ""
        print(f"{lengths:17} before {each.share:6.1%} of the tokens{right}")
    for value, perplexity in found.lambda_sweep.items():
        print(f"lambda {value:<4g} perplexity {perplexity:9.3f}")


def _spread(standard_error: float, digits: int) -> str:
    """The error of a figure behind it; a single window has none."""
    return "" if isnan(standard_error) else f" ± {standard_error:.{digits}f}"


def _report(found: "Evaluation", options: EvalOptions) -> dict[str, Any]:
    """What --json prints."""
    figures = ("perplexity", "standard_error", "bits_per_byte")
    return {
        "tokens": found.tokens,
        "text_tokens": found.text_tokens,
        "lambda": found.weight,
        **{
            field: {name: score and getattr(score, field) for name, score in _scores(found).items()}
            for field in figures
        },
        "worse_share": found.worse_share,
        "auto_ratio": found.auto_ratio and {"ratio": found.auto_ratio[0], "standard_error": found.auto_ratio[1]},
        "auto_weights": found.auto_weights,
        "matches": [asdict(each) for each in found.matches],
        "lambda_sweep": [{"lambda": key, "perplexity": value} for key, value in found.lambda_sweep.items()],
        "window": options.window,
        "stride": options.stride,
    }


def _scores(found: "Evaluation") -> dict[str, "Score | None"]:
    return {"base": found.base, "memory": found.memory, "mixture": found.mixture, "auto": found.auto}
