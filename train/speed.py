"""How fast this machine trains and reads, from a few steps on random tokens. Knows nothing of plans and of text."""

import time
from pathlib import Path

import numpy as np
import torch

from memdec_edge.options import CacheOptions, TrainOptions

from .feed import Data
from .head import predict
from .knn.build import interruptible
from .limits import enough_memory
from .loop import accelerator
from .models import load_source, work_copy, work_dtype
from .report import Speed
from .step import Learner
from .student import make_memory
from .teacher import gather_blocks
from .validation import Validation

ENOUGH = 5.0  # seconds of steps that are timed, if there is room for more than one
SQUARE = 1536  # side of the matrices whose product is timed


def measure_speed(path: Path, block: int, batch: int) -> Speed:
    """Load a model, take a few steps of `batch` blocks with it, read as many blocks, and time each.

    Raises what loading raises, MemoryLimitError, and Cancelled on Ctrl-C.
    """
    caching = CacheOptions(path, path, path, block=block, batch=batch)
    options = TrainOptions(caching, path, beta=0.0)
    with enough_memory(caching), interruptible():
        began = time.monotonic()
        processes, source = accelerator(), load_source(path)
        loading = time.monotonic() - began
        tokens = np.random.default_rng(0).integers(0, source.n_vocab, 4 * batch * block + 1, np.uint32)
        data = Data(tokens, None, Validation(tokens, block), block)
        learner = Learner(options, make_memory(source, None, None, 0), data, processes)
        steps = [_step(learner, number) for number in range(2)]
        while sum(steps[1:]) < ENOUGH and len(steps) < 4:
            steps.append(_step(learner, len(steps)))
        learner.close()
        del learner
        model, ids = work_copy(source.model, processes.device), gather_blocks(tokens, range(batch), block)
        reading = min(_read(model, ids.to(processes.device)) for _ in range(2))
        return Speed(
            training=batch * block / (sum(steps[1:]) / len(steps[1:])),
            reading=batch * block / reading,
            products=_products(processes.device, source.model.config.hidden_size),
            loading=loading,
            warming=max(0.0, steps[0] - steps[1]),
            seconds=time.monotonic() - began,
            device=processes.device.type,
        )


def _step(learner: Learner, number: int) -> float:
    """Seconds of one optimiser step."""
    began = time.monotonic()
    learner.gradients(number)
    learner.update(0.0)
    _finish()
    return time.monotonic() - began


@torch.inference_mode()
def _read(model: object, ids: torch.Tensor) -> float:
    began = time.monotonic()
    predict(model, ids).losses.sum().item()
    return time.monotonic() - began


def _products(device: torch.device, width: int) -> float:
    """Multiplications and additions a second of the products that the search for neighbours is made of."""
    matrix = torch.zeros(SQUARE, width, dtype=work_dtype(device.type), device=device)
    best = 0.0
    for _ in range(3):
        began = time.monotonic()
        (matrix @ matrix.T).sum().item()
        best = max(best, 2 * SQUARE * SQUARE * width / (time.monotonic() - began))
    return best


def _finish() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
