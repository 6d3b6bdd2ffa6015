"""The command serve: OpenAI's interface over HTTP. Knows nothing of HTTP."""

from typing import TYPE_CHECKING, Annotated

from memdec_edge.cli.flags import Flags, Given, spread
from memdec_edge.cli.output import note, warn
from memdec_edge.cli.parameters import (
    Base,
    Memories,
    Scaled,
    TemplateFile,
    Verbose,
    base_file,
    chat_options,
    memory_files,
    memory_options,
    set_verbose,
)
from memdec_edge.errors import MissingExtraError, OptionError
from memdec_edge.options import (
    ChatOptions,
    GenerationOptions,
    LoadOptions,
    MixtureOptions,
    SamplingOptions,
    ServerOptions,
)

if TYPE_CHECKING:
    from memdec_edge.api import LanguageModel


@spread
def serve(
    *,
    model: Base,
    memory: Memories = None,
    scaled: Scaled = None,
    weights: Given[MixtureOptions],
    server: Given[ServerOptions],
    templates: Given[ChatOptions],
    template_file: TemplateFile = None,
    generation: Annotated[Given[GenerationOptions], Flags("ignore_eos")],
    sampling: Annotated[Given[SamplingOptions], Flags("grammar", "json_schema")],
    load: Given[LoadOptions],
    verbose: Verbose = False,
) -> None:
    """Serve a base, its memories and indexes to OpenAI's clients.

    Options of sampling and generation are those of requests that name none.
    """
    serving, limits, sampler, mixing, loading = server(), generation(), sampling(), weights(), load()
    named, memories, chatting = model(), memory_options(memory, scaled), chat_options(templates, template_file)
    if serving.parallel > loading.n_batch:
        raise OptionError("n_batch", loading.n_batch, f"must be at least `parallel`, {serving.parallel}")
    if serving.memory_dir is not None and not serving.memory_dir.is_dir():
        raise OptionError("memory_dir", serving.memory_dir, "no such folder; make it, or leave it out")
    set_verbose(verbose)
    from dataclasses import replace

    from memdec_edge.api import open_model

    try:
        from memdec_edge.server.run import serve as run
        from memdec_edge.server.service import Service
        from memdec_edge.server.settings import Defaults
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "server") from error

    base, files = base_file(named), memory_files(memories)

    def opened() -> "LanguageModel":
        found = open_model(base, files, replace(loading, n_seq=serving.parallel))
        warn(found.engine.warnings)
        return found

    run(Service(opened, serving, Defaults(sampler, limits, mixing, serving.max_tokens), chatting), note)
