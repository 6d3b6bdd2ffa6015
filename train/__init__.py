"""corpus -> kNN cache -> memory checkpoint. Needs the extra [train].

    build_cache(CacheOptions) -> CacheReport     what a kNN retriever would answer at every position of a corpus
    train(TrainOptions) -> TrainReport           a small causal LM that has learned to answer so (2508.09874)
    adapt(AdaptOptions) -> TrainReport           such a memory for another vocabulary
    write_ids(path, ids, model)                  token ids as a corpus, for text that is tokenized elsewhere
    measure_speed_apart(...) -> Speed            how fast this machine does that

These run in the calling process, which they leave as it is: its threads, its signals. build_cache_apart(),
train_apart() and adapt_apart() do the same in a process of their own, where waiting threads do not disturb other work;
the command line calls those.

Importing this package raises MissingExtraError when a library is missing that every training needs, and imports none of
them. Other libraries only some trainings need: faiss where an index searches, llama.cpp where the teacher is a GGUF.
Without matplotlib no curves are drawn. Knows nothing of GGUF writing and mixing.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from memdec_edge.errors import MissingExtraError

if TYPE_CHECKING:
    from .adapting import adapt
    from .apart import adapt_apart, build_cache_apart, measure_speed_apart, train_apart
    from .knn.build import build_cache
    from .pipeline import train
    from .report import NOTICE, CacheReport, Speed, TrainReport
    from .token_files import write_ids

__all__ = [
    "NOTICE",
    "CacheReport",
    "Speed",
    "TrainReport",
    "adapt",
    "adapt_apart",
    "build_cache",
    "build_cache_apart",
    "measure_speed_apart",
    "train",
    "train_apart",
    "write_ids",
]

_HOMES = {
    "adapt": ".adapting",
    "adapt_apart": ".apart",
    "build_cache": ".knn.build",
    "build_cache_apart": ".apart",
    "measure_speed_apart": ".apart",
    "train": ".pipeline",
    "train_apart": ".apart",
    "NOTICE": ".report",
    "CacheReport": ".report",
    "Speed": ".report",
    "TrainReport": ".report",
    "write_ids": ".token_files",
}

for _module in ("torch", "transformers", "accelerate", "safetensors", "filelock"):
    if find_spec(_module) is None:
        raise MissingExtraError(_module, "train")


def __getattr__(name: str) -> Any:
    """A public name, from the module that is its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
