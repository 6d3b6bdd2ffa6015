"""The command run: continue a text. Knows nothing of how text is generated."""

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memdec_edge.cli.flags import Given, spread
from memdec_edge.cli.footnotes import Footnotes
from memdec_edge.cli.output import note, print_json, warn
from memdec_edge.cli.parameters import (
    Base,
    Json,
    Memories,
    Scaled,
    Sources,
    Verbose,
    base_file,
    check_one,
    memory_files,
    memory_options,
    set_verbose,
)
from memdec_edge.cli.voices import explain_weights, tell_voices
from memdec_edge.errors import OptionError
from memdec_edge.options import GenerationOptions, LoadOptions, MixtureOptions, SamplingOptions

if TYPE_CHECKING:
    from memdec_edge.api import LanguageModel
    from memdec_edge.api.results import Timings

SHOWN = ("text", "tokens", "finish_reason", "timings", "sources")  # with --json
ADVICE = "try one of the text's own domain"  # where a memory does not help
ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}  # the others stand for themselves, \xHH for a byte


@spread
def run(
    *,
    model: Base,
    memory: Memories = None,
    scaled: Scaled = None,
    weights: Given[MixtureOptions],
    text: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to continue; else -f, else stdin.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="Text to continue.")] = None,
    escape: Annotated[
        bool, typer.Option("--escape/--no-escape", "-e", help=r"Read \n, \t, \\ and the like in -p and -r.")
    ] = True,
    special: Annotated[
        bool, typer.Option("--special/--no-special", help="Read names of control tokens in the prompt as those tokens.")
    ] = True,
    generation: Given[GenerationOptions],
    sampling: Given[SamplingOptions],
    grammar_file: Annotated[
        Path | None, typer.Option("--grammar-file", metavar="FILE", help="GBNF from a file.")
    ] = None,
    load: Given[LoadOptions],
    show_sources: Sources = False,
    verbose: Verbose = False,
    json_: Json = False,
) -> None:
    """Continue a text with a base, its memories and indexes.

    Raw completion, no chat template. Text streams to stdout, everything else goes to stderr.
    """
    named, limits, sampler, mixing, loading = model(), generation(), sampling(), weights(), load()
    check_one(text, file)
    if escape:
        limits = generation(stop=tuple(map(unescaped, limits.stop)))
        text = None if text is None else unescaped(text)
    if grammar_file and sampler.grammar:
        raise OptionError("grammar_file", grammar_file, "given beside `grammar`; give one of the two")
    memories = memory_options(memory, scaled)
    if grammar_file:
        if not (grammar := _text_of(grammar_file)).strip():
            raise OptionError("grammar_file", grammar_file, "is empty; give a file with a grammar")
        sampler = sampling(grammar=grammar)
    set_verbose(verbose)
    from memdec_edge.api import open_model

    prompt = _text_of(file) if text is None else text
    with open_model(base_file(named), memory_files(memories), loading) as language_model:
        engine = language_model.engine
        resolved = engine.mixture(mixing)
        warn(engine.warnings)
        tell_voices(resolved, mixing.total, verbose)
        tokens = engine.base.tokenize(prompt, parse_special=special)
        warn(filter(None, [engine.base.prompt_warning(tokens)]))
        if json_:
            done = language_model.generate(tokens, sampler, limits, mixing)
            _explain_silence(language_model, done.timings, done.finish_reason)
            explain_weights(done.weights, done.matched, done.helps, verbose, ADVICE)
            shown = {name: value for name, value in asdict(done).items() if name in SHOWN}
            quotes = [language_model.quote(source) for source in done.sources]
            shown["sources"] = [each | {"text": text} for each, text in zip(shown["sources"], quotes, strict=True)]
            print_json(shown)
            return
        notes = Footnotes()
        if show_sources and not resolved.indexes:
            warn(["--sources names passages of indexes, and none is given; index your documents, and add -M INDEX"])
        for chunk in language_model.stream(tokens, sampler, limits, mixing):
            mark = notes.mark(chunk.source)
            print(mark if show_sources else "", chunk.text, sep="", end="", flush=True)
        print()
        if show_sources and resolved.indexes:
            print("", *notes.lines(language_model), sep="\n")
        _print_timings(chunk.timings, str(chunk.finish_reason))
        _explain_silence(language_model, chunk.timings, str(chunk.finish_reason))
        explain_weights(chunk.weights, chunk.matched, chunk.helps, verbose, ADVICE)


def unescaped(text: str) -> str:
    """Return `text` with the escape sequences that llama.cpp knows replaced; a backslash before others stays."""
    data = re.sub(
        rb"\\(?:x([0-9a-fA-F]{2})|([nrt'\"\\]))",
        lambda found: bytes.fromhex(found[1].decode()) if found[1] else ESCAPES.get(found[2], found[2]),
        text.encode("utf-8", "surrogateescape"),
    )
    return data.decode("utf-8", "surrogateescape")  # bytes that are no UTF-8 are refused where they are used


def _print_timings(timings: "Timings", reason: str) -> None:
    """Print on stderr how many tokens took how long."""
    drafts = f", {timings.draft_n_accepted} of {timings.draft_n} drafted were accepted" if timings.draft_n else ""
    note(
        f"{timings.prompt_n} prompt tokens in {timings.prompt_ms / 1e3:.2f} s, "
        f"{timings.predicted_n} new in {timings.predicted_ms / 1e3:.2f} s "
        f"({timings.predicted_per_second:.1f} tokens/s), ended by {reason}{drafts}"
    )


def _explain_silence(model: "LanguageModel", timings: "Timings", reason: str) -> None:
    """Say on stderr why an instruct model had nothing to add: it takes a bare question for a whole document."""
    base = model.engine.base
    if reason == "stop" and not timings.predicted_n and "tokenizer.chat_template" in base.metadata:
        note(
            f"{base.path} has a chat template, and run continues raw text without it; "
            "ask with memdec-edge chat, begin the answer yourself, or give --ignore-eos"
        )


def _text_of(path: Path | None) -> str:
    """Return a text file, or stdin, without the newline that ends it, as llama.cpp reads prompts."""
    from memdec_edge.documents import read_stream, read_text

    if path is not None:
        return read_text(path).removesuffix("\n")
    if sys.stdin.isatty():
        note("reading the prompt from the terminal; end it with Ctrl-D")
    return read_stream(sys.stdin.buffer, "stdin").removesuffix("\n")
