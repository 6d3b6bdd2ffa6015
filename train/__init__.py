"""corpus -> kNN cache -> memory checkpoint. Needs the extra [train].

    build_cache(CacheOptions) -> CacheReport     what a kNN retriever would answer at every position of a corpus
    train(TrainOptions) -> TrainReport           a small causal LM that has learned to answer so (2508.09874)

Importing this package raises MissingExtraError when a library of the extra is not installed. Knows nothing of GGUF
writing and mixing.
"""

import os
import sys
from importlib.util import find_spec

from memdec_edge.errors import MissingExtraError

for _module in ("torch", "transformers", "accelerate", "safetensors"):
    if find_spec(_module) is None:
        raise MissingExtraError(_module, "train")

# GNU OpenMP spins at its barriers: one busy process beside a training on 2 cores makes a step 10-15 times slower. It
# reads the variable when torch loads it; llama.cpp, which gains from spinning, must not see it.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        import torch  # noqa: F401
    finally:
        del os.environ["OMP_WAIT_POLICY"]

from .cache import CacheReport, build_cache  # noqa: E402
from .checkpoint import NOTICE  # noqa: E402
from .loop import TrainReport, train  # noqa: E402

__all__ = ["NOTICE", "CacheReport", "TrainReport", "build_cache", "train"]
