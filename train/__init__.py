"""corpus -> kNN cache -> memory checkpoint. Needs the extra [train].

    build_cache(CacheOptions) -> CacheReport     what a kNN retriever would answer at every position of a corpus
    train(TrainOptions) -> TrainReport           a small causal LM that has learned to answer so (2508.09874)

Importing this package raises MissingExtraError when a library of the extra is not installed. Knows nothing of GGUF
writing and mixing.
"""

from importlib.util import find_spec

from memdec_edge.errors import MissingExtraError

for _module in ("torch", "transformers", "accelerate", "safetensors", "faiss", "matplotlib"):
    if find_spec(_module) is None:
        raise MissingExtraError(_module, "train")

from .checkpoint import NOTICE  # noqa: E402
from .knn.build import build_cache  # noqa: E402
from .knn.cache import CacheReport  # noqa: E402
from .pipeline import TrainReport, train  # noqa: E402

__all__ = ["NOTICE", "CacheReport", "TrainReport", "build_cache", "train"]
