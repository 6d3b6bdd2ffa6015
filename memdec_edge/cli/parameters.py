"""Parameters that several commands share, and what is made of them. Knows nothing of what a command does."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from memdec_edge.cli.flags import Given, of
from memdec_edge.cli.output import note
from memdec_edge.errors import MissingFileError, OptionError
from memdec_edge.options import BaseOptions, CacheOptions, ChatOptions, MemoryOptions
from memdec_edge.options.fields import check_text

Base = Given[BaseOptions]
Memories = Annotated[list[Path] | None, of(MemoryOptions, "path")]
Scaled = Annotated[list[str] | None, of(MemoryOptions, "weight")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]
ShowText = Annotated[
    Path | None,
    typer.Option("--show-text", metavar="FILE", help="Write the text as it will be read to FILE, and do nothing else."),
]
Sources = Annotated[
    bool, typer.Option("--sources", help="Mark passages of indexed documents, and print footnotes after the text.")
]
TemplateFile = Annotated[
    Path | None, typer.Option("--chat-template-file", metavar="FILE", help="Chat template from a file.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show llama.cpp's log on stderr.")]


def base_file(options: BaseOptions) -> Path:
    """Return the GGUF of the base that was named; one of the Hugging Face Hub is downloaded first.

    Raises OptionError where none was named, MissingFileError, and what hub.gguf_of() raises.
    """
    if options.hf_repo:
        from memdec_edge.hub import gguf_of

        found = gguf_of(options.hf_repo, options.hf_file)
        note(f"base {found}")
        return found.path
    if options.model is None:
        raise OptionError("model", "not given", "give the GGUF of a base, or its name on the Hub by `hf_repo`")
    if not options.model.exists():
        raise MissingFileError(options.model, "GGUF file", "check the path, or download a base by `hf_repo`")
    return options.model


def chat_options(templates: Callable[..., ChatOptions], file: Path | None) -> ChatOptions:
    """Return the options of chats, with the template of `file` if one is given.

    Raises OptionError for a template given twice, and what reading raises.
    """
    options = templates()
    if file is None:
        return options
    if options.chat_template:
        raise OptionError("template_file", file, "given beside `chat_template`; give one of the two")
    from memdec_edge.documents import read_text

    return templates(chat_template=read_text(file))


def memory_options(memories: list[Path] | None, scaled: list[str] | None) -> list[MemoryOptions]:
    """Return -M files first, then --memory-scaled ones, each split at its last colon. Raises OptionError."""
    chosen = [MemoryOptions(path) for path in memories or ()]
    for text in scaled or ():
        path, colon, weight = text.rpartition(":")
        try:
            chosen.append(MemoryOptions(Path(path), float(weight)))
        except ValueError:
            colon = ""
        if not colon:
            raise OptionError("weight", text, "must be FILE:LAMBDA, such as memdec-law.gguf:0.4")
    for memory in memories or ():
        file, _, number = str(memory).rpartition(":")
        if not memory.exists() and re.fullmatch(r"[0-9.]+", number) and Path(file).is_file():
            raise OptionError("memory", memory, "no file has that name; a memory with its weight is given by `weight`")
    return chosen


def memory_file(path: Path) -> Path:
    """Return the GGUF of a memory or an index; one of the Hub is downloaded first. Raises as hub.memory_of() does."""
    from memdec_edge.hub import local, memory_of

    return local(path, memory_of)


def memory_files(memories: list[MemoryOptions]) -> list[MemoryOptions]:
    """Return the same memories, each by its memory_file()."""
    return [replace(memory, path=memory_file(memory.path)) for memory in memories]


def shows_text(file: Path | None, options: CacheOptions) -> bool:
    """Write the documents of a corpus as training reads them, where a file was given for that; return whether it was.

    Raises as show_text() does.
    """
    if file is None:
        return False
    from memdec_edge.documents import show_text

    show_text(options.corpus, options.valid_fraction, options.test_fraction, options.seed, file)
    print(f"text {file}")
    return True


def check_one(text: str | None, file: Path | None) -> None:
    """Raise OptionError where both were given, or a text that is not UTF-8."""
    if text is not None:
        check_text("text", text)
    if text is not None and file is not None:
        raise OptionError("file", str(file), "given beside `text`; give one of the two")


def set_verbose(verbose: bool) -> None:
    """Show llama.cpp's log where --verbose was given, and keep it silent elsewhere."""
    from memdec_edge.llama.library import set_verbose

    set_verbose(verbose)
