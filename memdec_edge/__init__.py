"""memdec-edge: domain memory for language models on your own machine.

    from memdec_edge import open_model

    with open_model("base.gguf", ["memdec-medicine.gguf"]) as model:
        print(model.generate("Anaemia is").text)

The names of `__all__` are the public ones. Each is imported at its first use, so that importing the package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memdec_edge.api import Conversation, LanguageModel, open_model
    from memdec_edge.dropin import MemoryLlama
    from memdec_edge.errors import (
        BusyError,
        Cancelled,
        ContextError,
        CorpusError,
        DecodeError,
        ExistingOutputError,
        HubError,
        LibraryError,
        MemdecError,
        MemoryLimitError,
        MissingExtraError,
        MissingFileError,
        ModelFileError,
        NumericsError,
        OptionError,
        OutputError,
        OverloadError,
        PairingError,
        RoleError,
        SessionFileError,
        StageBusyError,
        StageError,
        TaskError,
        TemplateError,
        UnavailableError,
        WorkerError,
    )
    from memdec_edge.options import (
        ChatOptions,
        GenerationOptions,
        LoadOptions,
        MemoryOptions,
        MixtureOptions,
        SamplingOptions,
    )

    __version__: str

__all__ = [
    "BusyError",
    "Cancelled",
    "ChatOptions",
    "ContextError",
    "Conversation",
    "CorpusError",
    "DecodeError",
    "ExistingOutputError",
    "GenerationOptions",
    "HubError",
    "LanguageModel",
    "LibraryError",
    "LoadOptions",
    "MemdecError",
    "MemoryLimitError",
    "MemoryLlama",
    "MemoryOptions",
    "MissingExtraError",
    "MissingFileError",
    "MixtureOptions",
    "ModelFileError",
    "NumericsError",
    "OptionError",
    "OutputError",
    "OverloadError",
    "PairingError",
    "RoleError",
    "SamplingOptions",
    "SessionFileError",
    "StageBusyError",
    "StageError",
    "TaskError",
    "TemplateError",
    "UnavailableError",
    "WorkerError",
    "open_model",
]
_HOMES = ("errors", "options", "api", "dropin")  # the light ones first: api loads llama.cpp


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("memdec-edge")
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"memdec_edge.{home}")
            if hasattr(module, name):
                return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
