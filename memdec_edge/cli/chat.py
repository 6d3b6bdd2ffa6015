"""The command chat: talk to a base, its memories and indexes. Knows nothing of how answers come about."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memdec_edge.cli.flags import Flags, Given, spread
from memdec_edge.cli.output import note, warn
from memdec_edge.cli.parameters import (
    Base,
    Memories,
    Scaled,
    Sources,
    TemplateFile,
    Verbose,
    base_file,
    chat_options,
    memory_files,
    memory_options,
    set_verbose,
)
from memdec_edge.errors import OptionError
from memdec_edge.options import ChatOptions, GenerationOptions, LoadOptions, MixtureOptions, SamplingOptions

if TYPE_CHECKING:
    from memdec_edge.api import LanguageModel


@spread
def chat(
    *,
    model: Base,
    memory: Memories = None,
    scaled: Scaled = None,
    weights: Given[MixtureOptions],
    system: Annotated[str, typer.Option("-sys", "--system", metavar="TEXT", help="Text before all messages.")] = "",
    templates: Given[ChatOptions],
    template_file: TemplateFile = None,
    show_memory: Annotated[
        bool, typer.Option("--show-memory", help="Shade each token by the memory's share of its probability.")
    ] = False,
    show_sources: Sources = False,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Answer with the base alone and with the mixture, in two columns.")
    ] = False,
    context_shift: Annotated[
        bool, typer.Option("--context-shift", help="Drop the oldest turns where the context is full.")
    ] = False,
    generation: Annotated[Given[GenerationOptions], Flags("ignore_eos")],
    sampling: Given[SamplingOptions],
    load: Given[LoadOptions],
    verbose: Verbose = False,
) -> None:
    """Chat with a base, its memories and indexes in the terminal.

    Without -m and -hf the base is SmolLM2, where it is installed. Answers stream to stdout, everything else goes to
    stderr. /help tells what else can be typed. Input from a pipe is a line for each message.
    """
    named, limits, sampler, mixing = model(), generation(), sampling(), weights()
    loading, memories = load(), memory_options(memory, scaled)
    chatting = chat_options(templates, template_file)
    set_verbose(verbose)
    from dataclasses import replace

    from memdec_edge.api import open_model
    from memdec_edge.api.conversation import Conversation
    from memdec_edge.cli.answers import Answers
    from memdec_edge.cli.dialogue import Dialogue

    base = base_file(named) if named.model or named.hf_repo else _usual_base()
    with open_model(base, memory_files(memories), replace(loading, n_seq=2 if side_by_side else 1)) as opened:
        warn(opened.engine.warnings)
        chatting = _with_template(opened, chatting)
        conversation = Conversation(opened, sampler, limits, mixing, chatting, system)
        answers = Answers(show_memory, opened if show_sources else None)
        Dialogue(conversation, answers, side_by_side, context_shift, verbose).run()


def _usual_base() -> Path:
    """The base of the demo, if its package is there. Raises OptionError, which says what else there is."""
    from memdec_edge.errors import MissingExtraError
    from memdec_edge.workflow.demo import demo_base

    try:
        path = demo_base()
    except MissingExtraError as error:
        raise OptionError("model", "not given", f"give a base, or its name on the Hub by `hf_repo`; {error}") from error
    note(f"the base is {path.name}; give another with -m")
    return path


def _with_template(opened: "LanguageModel", options: ChatOptions) -> ChatOptions:
    """The options as given, or with plain turns where the base has no template; says so. Raises TemplateError."""
    from dataclasses import replace

    from memdec_edge.errors import TemplateError

    try:
        opened.template(options)
    except TemplateError as error:
        if not error.missing:
            raise
        note(f"{error.name} has no chat template, so turns are plain text; --chat-template chatml is another way")
        return replace(options, chat_template="plain")
    return options
