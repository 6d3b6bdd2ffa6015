"""How many bytes a pass of a model reads, and how fast this machine reads memory: the limit of decoding on a CPU.

Knows nothing of decoding.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

from memdec_edge.gguf import parts

BUFFER = 256 << 20  # bytes, more than any cache holds


def model_bytes(path: Path) -> int:
    """Bytes of the tensors that a pass reads whole: all but an embedding that is only looked up.

    A token of a mixture of experts reads less. Errors: see parts.files().
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    sizes = {}
    for tensor in parts.tensors(path):
        elements, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        sizes[tensor.name] = math.prod(tensor.shape) // elements * n_bytes
    if "output.weight" in sizes:
        sizes.pop("token_embd.weight", None)
    return sum(sizes.values())


def bandwidth_meter(threads: int) -> Callable[[], float]:
    """Each call reads BUFFER bytes once, a part by each thread, and returns bytes per second."""
    parts = np.array_split(np.ones(BUFFER // 8, np.int64), threads)
    pool = ThreadPoolExecutor(threads)

    def measure() -> float:
        begin = perf_counter()
        list(pool.map(np.sum, parts))  # NumPy gives the GIL up, and adds faster than memory answers
        return BUFFER / (perf_counter() - begin)

    return measure
