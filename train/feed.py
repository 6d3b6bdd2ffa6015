"""The batches of one process: a thread makes the next one while the device works on this one.

What a batch holds is a function of seed and number alone. So a resumed run equals one that never stopped, and a control
with beta = 0 sees the same text in the same order. Knows nothing of models.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from accelerate import Accelerator
from torch import Tensor

from memdec_edge.options import CacheOptions

from .corpus import Tokens
from .targets import Support, Targets
from .teacher import gather_blocks, n_blocks
from .transfer import send
from .validation import Validation


@dataclass(frozen=True)
class Data:
    """What a training sees."""

    train: Tokens
    targets: Targets | None  # of the training positions; None: cross-entropy alone
    validation: Validation
    block: int  # tokens


class Feed:
    """Batches by number; those of a step follow one another."""

    def __init__(self, data: Data, options: CacheOptions, accelerator: Accelerator) -> None:
        self._data, self._options, self._accelerator = data, options, accelerator
        self._blocks = n_blocks(data.train, data.block)
        self._maker = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[tuple[Tensor, Support]]] | None = None

    def batch(self, number: int) -> tuple[Tensor, Support]:
        """Token ids [batch, block + 1] and targets, on the device, of this process's pass of that number."""
        if self._next and self._next[0] == number:
            ids, support = self._next[1].result()
        else:
            ids, support = self._make(number)
        self._next = number + 1, self._maker.submit(self._make, number + 1)
        device = self._accelerator.device
        return send(ids, device), support.to(device)

    def close(self) -> None:
        """End the thread."""
        self._maker.shutdown(cancel_futures=True)

    def _make(self, number: int) -> tuple[Tensor, Support]:
        length, size, total = self._data.block, self._options.batch, self._blocks
        first = number * self._accelerator.num_processes + self._accelerator.process_index
        slots = range(first * size, (first + 1) * size)
        blocks = [_order(self._options.seed, slot // total, total)[slot % total] for slot in slots]
        ids = gather_blocks(self._data.train, blocks, length)
        if self._data.targets:
            return ids, self._data.targets.rows([block * length for block in blocks], length)
        return ids, Support.empty(len(blocks) * length)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, blocks: int) -> list[int]:
    """The order in which an epoch goes through the blocks."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order: list[int] = torch.randperm(blocks, generator=generator).tolist()
    return order
