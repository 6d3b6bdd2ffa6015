"""Options: frozen dataclasses that check themselves, the only home of defaults, ranges, flags and help.

    fields       what an option says about itself, and the checks that follow
    chat         chat templates
    inference    loading, mixing, sampling, generating, measuring
    training     kNN cache, training, demo
    conversion   GGUF files: memories, models, indexes
    server       the HTTP server

A value that cannot be raises OptionError, which names the field. Knows nothing of where values come from: the command
line, Python and the tests build the same objects.
"""

from memdec_edge.options.chat import ChatOptions
from memdec_edge.options.conversion import (
    OUT_TYPES,
    QUANT_TYPES,
    TENSOR_TYPES,
    ConvertOptions,
    IndexOptions,
    QuantizeOptions,
    QuantTypes,
)
from memdec_edge.options.fields import check_choice, check_range
from memdec_edge.options.inference import (
    CACHE_TYPES,
    DEFAULT_LAMBDA,
    ETA,
    INITIAL_LAMBDA,
    LAMBDAS,
    MAX_DRAFT,
    SHARE,
    BenchOptions,
    EvalOptions,
    GenerationOptions,
    LoadOptions,
    MemoryOptions,
    MixtureOptions,
    SamplingOptions,
)
from memdec_edge.options.server import ServerOptions
from memdec_edge.options.training import (
    DEFAULT_K,
    DOMAINS,
    KEYS,
    SEARCHES,
    TARGETS,
    CacheOptions,
    DemoOptions,
    TrainOptions,
)

__all__ = [
    "CACHE_TYPES",
    "DEFAULT_K",
    "DEFAULT_LAMBDA",
    "DOMAINS",
    "ETA",
    "INITIAL_LAMBDA",
    "KEYS",
    "LAMBDAS",
    "MAX_DRAFT",
    "OUT_TYPES",
    "QUANT_TYPES",
    "SEARCHES",
    "SHARE",
    "TARGETS",
    "TENSOR_TYPES",
    "BenchOptions",
    "CacheOptions",
    "ChatOptions",
    "ConvertOptions",
    "DemoOptions",
    "EvalOptions",
    "GenerationOptions",
    "IndexOptions",
    "LoadOptions",
    "MemoryOptions",
    "MixtureOptions",
    "QuantTypes",
    "QuantizeOptions",
    "SamplingOptions",
    "ServerOptions",
    "TrainOptions",
    "check_choice",
    "check_range",
]
