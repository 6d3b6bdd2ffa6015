"""Too little memory: how PyTorch says so, and what is said to the user. Knows nothing of what needs the memory."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from memdec_edge.errors import MemoryLimitError
from memdec_edge.options import DEFAULT_K, CacheOptions


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch ran out of memory, for which it has one type of error on a GPU and none on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def release(error: RuntimeError) -> None:
    """Let go of what the work held that ended so."""
    traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def enough_memory(options: CacheOptions, accumulate: int | None = None) -> Iterator[None]:
    """Raise MemoryLimitError, which proposes a smaller batch, where PyTorch runs out of memory.

    accumulate  passes in one step of a training, which a smaller batch goes on with; None: no training
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        work = f"{options.batch} blocks of {options.block} tokens in a pass, {options.k or DEFAULT_K} neighbours"
        raise MemoryLimitError(work, _advice(options.batch, accumulate)) from error


def _advice(batch: int, accumulate: int | None) -> str:
    if batch == 1:
        return "a smaller `block`, `k` or model needs less"
    parts = next(part for part in range(2, batch + 1) if batch % part == 0)
    smaller = f"`batch` {batch // parts}" + (f" with `accumulate` {accumulate * parts}" if accumulate else "")
    return f"what was finished is kept, and {smaller} goes on with it; a smaller `block`, `k` or model needs less, too"
