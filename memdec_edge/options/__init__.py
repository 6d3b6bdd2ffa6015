"""Options: frozen dataclasses that check themselves, the only home of defaults, ranges, flags and help.

    fields       what an option says about itself, and the checks that follow
    chat         chat templates
    inference    loading, mixing, sampling, generating, measuring
    training     kNN cache, training, adapting
    learning     learn and the demo
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
    HUB_ID,
    HUB_NAME,
    INITIAL_INDEX,
    INITIAL_LAMBDA,
    INITIAL_POWER,
    LAMBDAS,
    MAX_DRAFT,
    SHARE,
    BaseOptions,
    BenchOptions,
    EvalOptions,
    GenerationOptions,
    LoadOptions,
    MemoryOptions,
    MixtureOptions,
    SamplingOptions,
)
from memdec_edge.options.learning import DOMAINS, DemoOptions, LearnOptions
from memdec_edge.options.server import ServerOptions
from memdec_edge.options.training import (
    CHAT_SHARE,
    DEFAULT_K,
    KEYS,
    SEARCHES,
    TARGETS,
    AdaptOptions,
    CacheOptions,
    TrainOptions,
)

__all__ = [
    "CACHE_TYPES",
    "CHAT_SHARE",
    "DEFAULT_K",
    "DEFAULT_LAMBDA",
    "DOMAINS",
    "ETA",
    "HUB_ID",
    "HUB_NAME",
    "INITIAL_INDEX",
    "INITIAL_LAMBDA",
    "INITIAL_POWER",
    "KEYS",
    "LAMBDAS",
    "MAX_DRAFT",
    "OUT_TYPES",
    "QUANT_TYPES",
    "SEARCHES",
    "SHARE",
    "TARGETS",
    "TENSOR_TYPES",
    "AdaptOptions",
    "BaseOptions",
    "BenchOptions",
    "CacheOptions",
    "ChatOptions",
    "ConvertOptions",
    "DemoOptions",
    "EvalOptions",
    "GenerationOptions",
    "IndexOptions",
    "LearnOptions",
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
