"""The command run: continue a text. Knows nothing of how text is generated."""

import sys
from dataclasses import asdict
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
    check_one,
    memory_options,
    set_verbose,
    warn,
)
from memdec_edge.cli.flags import Given, spread
from memdec_edge.cli.output import print_json
from memdec_edge.errors import OptionError
from memdec_edge.options import GenerationOptions, LoadOptions, SamplingOptions


@spread
def run(
    *,
    model: Base,
    memory: Memories = None,
    scaled: Scaled = None,
    total: Lambda = None,
    text: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to continue; else -f, else stdin.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="Text to continue.")] = None,
    generation: Given[GenerationOptions],
    sampling: Given[SamplingOptions],
    grammar_file: Annotated[
        Path | None, typer.Option("--grammar-file", metavar="FILE", help="GBNF from a file.")
    ] = None,
    load: Given[LoadOptions],
    verbose: Verbose = False,
    json_: Json = False,
) -> None:
    """Continue a text with a base and its memories.

    Raw completion, no chat template. Text streams to stdout, everything else goes to stderr.
    """
    chosen = memory_options(memory, scaled)
    sampler, limits, loading = sampling(), generation(), load()
    check_lambda(total)
    check_one(text, file)
    if grammar_file:
        if sampler.grammar:
            raise OptionError("grammar_file", str(grammar_file), "given beside `grammar`; give one of the two")
        sampler = sampling(grammar=_text_of(grammar_file))
    set_verbose(verbose)
    from memdec_edge.api import open_model

    prompt = text if text is not None else _text_of(file)
    with open_model(model, chosen, loading) as language_model:
        engine = language_model.engine
        mixture = engine.mixture(total)
        warn(engine.warnings)
        for opened, weight in zip(mixture.memories, mixture.weights, strict=True):
            print(f"memory {opened.model.path} at lambda {weight:.3g}", file=sys.stderr)
        if json_:
            done = language_model.generate(prompt, sampler, limits, total)
            print_json(asdict(done))
            return
        for chunk in language_model.stream(prompt, sampler, limits, total):
            print(chunk.text, end="", flush=True)
        print()
        timings = chunk.timings
        print(
            f"{timings.prompt_n} prompt tokens in {timings.prompt_ms / 1e3:.2f} s, "
            f"{timings.predicted_n} new in {timings.predicted_ms / 1e3:.2f} s "
            f"({timings.predicted_per_second:.1f} tokens/s), ended by {chunk.finish_reason}"
            + (f", {timings.draft_n_accepted} of {timings.draft_n} drafted were accepted" if timings.draft_n else ""),
            file=sys.stderr,
        )


def _text_of(path: Path | None) -> str:
    """A text file, or stdin, without the newline that ends it, as llama.cpp reads prompts; UTF-8."""
    from memdec_edge.documents import decode_text, read_text

    text = decode_text(sys.stdin.buffer.read(), "stdin") if path is None else read_text(path)
    return text.removesuffix("\n")
