"""Commands that use models: run, eval, check, show."""

import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from memdec_edge.cli import params as p
from memdec_edge.cli.flags import spread
from memdec_edge.cli.output import print_json
from memdec_edge.errors import OptionError
from memdec_edge.options import EvalOptions, GenerationOptions, LoadOptions

GENERATION, EVAL = GenerationOptions(), EvalOptions()


@spread
def run(
    model: p.Base,
    memory: p.Memories = None,
    memory_scaled: p.Scaled = None,
    lambda_: p.Lambda = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to continue; else -f, else stdin.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="Text to continue.")] = None,
    predict: Annotated[
        int, typer.Option("-n", "--predict", help="Tokens at most; -1: to the context's end.")
    ] = GENERATION.n_predict,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Exactly -n tokens.")] = GENERATION.ignore_eos,
    stop: Annotated[
        list[str] | None, typer.Option("-r", "--stop", help="Text that ends generation; repeatable.")
    ] = None,
    sampling: p.Sampling = p.SAMPLING,
    grammar_file: Annotated[
        Path | None, typer.Option("--grammar-file", metavar="FILE", help="GBNF from a file.")
    ] = None,
    draft: p.Draft = "auto",
    load: p.Load = p.LOAD,
    verbose: p.Verbose = False,
    json_: p.Json = False,
) -> None:
    """Continue a text with a base and its memories.

    Raw completion, no chat template. Text streams to stdout, everything else goes to stderr.
    """
    memories = p.memory_options(memory, memory_scaled)
    if grammar_file:
        if sampling.grammar:
            raise OptionError("--grammar-file", str(grammar_file), "given beside --grammar; give one of the two")
        sampling = replace(sampling, grammar=_text_of(grammar_file))
    generation = GenerationOptions(
        n_predict=predict, ignore_eos=ignore_eos, stop=tuple(stop or ()), draft=p.draft_length(draft)
    )
    if prompt is not None and file is not None:
        raise OptionError("--file", str(file), "given beside --prompt; give one of the two")
    p.check_lambda(lambda_)
    p.set_verbose(verbose)
    from memdec_edge.api import open_model

    text = prompt if prompt is not None else _text_of(file)
    with open_model(model, memories, load) as language_model:
        engine = language_model.engine
        mixture = engine.mixture(lambda_)
        for warning in engine.warnings:
            print(f"Warning: {warning}", file=sys.stderr)
        for opened, weight in zip(mixture.memories, mixture.weights, strict=True):
            print(f"memory {opened.model.path} at lambda {weight:.3g}", file=sys.stderr)
        if json_:
            done = language_model.generate(text, sampling, generation, lambda_)
            print_json(asdict(done))
            return
        for chunk in language_model.stream(text, sampling, generation, lambda_):
            print(chunk.text, end="", flush=True)
        print()
        timings = chunk.timings
        print(
            f"{timings.prompt_n} prompt tokens in {timings.prompt_ms / 1e3:.2f} s, "
            f"{timings.predicted_n} new in {timings.predicted_ms / 1e3:.2f} s "
            f"({timings.predicted_per_second:.1f} tokens/s), ended by {chunk.finish_reason}"
            + (f", {timings.draft_n_accepted} of {timings.draft_n} drafted were right" if timings.draft_n else ""),
            file=sys.stderr,
        )


@spread
def eval_(
    model: p.Base,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Text: .txt, .md, .jsonl, or a folder of them.")],
    memory: p.Memories = None,
    memory_scaled: p.Scaled = None,
    lambda_: p.Lambda = None,
    window: Annotated[int, typer.Option("--window", help="Tokens of a window.")] = EVAL.window,
    stride: Annotated[int, typer.Option("--stride", help="New tokens of a window, those scored.")] = EVAL.stride,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", help="Score a sample of at most this many, evenly spaced; 0: all.")
    ] = EVAL.max_tokens,
    load: Annotated[LoadOptions, p.LOAD_FLAGS.without("n_ctx")] = p.LOAD,
    verbose: p.Verbose = False,
    json_: p.Json = False,
) -> None:
    """Perplexity of base, memories and mixture on a text.

    A sweep over lambda comes with it. Of a folder with split files the test split is scored.
    """
    options = EvalOptions(window=window, stride=stride, max_tokens=max_tokens)
    memories = p.memory_options(memory, memory_scaled)
    p.check_lambda(lambda_)
    p.set_verbose(verbose)
    from memdec_edge.documents import read_documents
    from memdec_edge.engine import Engine
    from memdec_edge.evaluation.perplexity import evaluate

    documents = read_documents(path)
    with closing(Engine(model, memories, replace(load, n_ctx=window))) as engine:
        for warning in engine.warnings:
            print(f"Warning: {warning}", file=sys.stderr)
        found = evaluate(engine, documents, options, lambda_)
    scores = {"base": found.base, "memory": found.memory, "mixture": found.mixture}
    print(f"{found.tokens} of {found.text_tokens} tokens scored, window {window}, stride {stride}")
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
            "window": window,
            "stride": stride,
        }
        print_json(report)


def check(
    model: p.Base,
    memory: Annotated[Path, typer.Option("-M", "--memory", metavar="FILE", help="Memory GGUF.")],
) -> None:
    """Do a base and a memory share a vocabulary?

    Exit code 0 or 1; the first difference is named.
    """
    from memdec_edge.llama.model import Model
    from memdec_edge.llama.pairing import require_match

    with closing(Model(model, vocab_only=True)) as base, closing(Model(memory, vocab_only=True)) as opened:
        warning = require_match(base, opened)
        if warning:
            print(f"Warning: {warning}", file=sys.stderr)
        print(f"{memory} matches {model}: {min(base.n_vocab, opened.n_vocab)} shared tokens")


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF.")],
    json_: p.Json = False,
) -> None:
    """What a memory GGUF says about itself."""
    from memdec_edge.gguf import metadata, parts

    values, _ = metadata.read(file)
    metadata.MemoryMetadata.from_gguf(file, values)  # values that cannot be are refused
    facts = {
        key: value
        for key, value in values.items()
        if key.startswith(("general.", metadata.PREFIX)) and value != "" and value == value  # NaN: not set
    }
    facts |= {"tensors": len(parts.tensors(file)), "bytes": parts.n_bytes(file)}
    if not metadata.is_memory(values):
        print(f"{file} is a plain model, not a memory", file=sys.stderr)
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:{width}}  {value}")
    if json_:
        print_json(facts)


def _text_of(path: Path | None) -> str:
    """A text file, or stdin, without the newline that ends it, as llama.cpp reads prompts; UTF-8."""
    from memdec_edge.documents import decode_text, read_text

    text = decode_text(sys.stdin.buffer.read(), "stdin") if path is None else read_text(path)
    return text.removesuffix("\n")
