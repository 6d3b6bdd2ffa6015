"""The batches of one process: a thread makes the next one while the device works on this one.

What a batch holds is a function of seed and number alone. So a resumed run equals one that never stopped, and a control
with beta = 0 sees the same text in the same order. Where only some positions count, a step's loss is the mean over
those of all its passes, in whichever process. Knows nothing of models.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from memdec_edge.options import CacheOptions

from .corpus import Counted, Tokens
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
    counted: Counted | None = None  # of the tokens of `train`, those that are learned; None: all


class Batch(NamedTuple):
    """What one pass learns from. weights: of its positions in the step's mean, 1 on average over the step."""

    ids: Tensor  # int64 [batch, block + 1]
    support: Support
    weights: Tensor  # float32 [batch * block]


class Feed:
    """Batches by number; those of a step, `passes` in each process, follow one another."""

    def __init__(self, data: Data, options: CacheOptions, accelerator: Accelerator, passes: int = 1) -> None:
        self._data, self._options, self._accelerator = data, options, accelerator
        self._passes = passes * accelerator.num_processes
        self._blocks = n_blocks(data.train, data.block)
        self._maker = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[Batch]] | None = None

    def batch(self, number: int) -> Batch:
        """The batch of this process's pass of that number, on the device."""
        found = self._next[1].result() if self._next and self._next[0] == number else self._make(number)
        self._next = number + 1, self._maker.submit(self._make, number + 1)
        device = self._accelerator.device
        return Batch(send(found.ids, device), found.support.to(device), send(found.weights, device))

    def close(self) -> None:
        """End the thread."""
        self._maker.shutdown(cancel_futures=True)

    def _make(self, number: int) -> Batch:
        length, data = self._data.block, self._data
        mine = number * self._accelerator.num_processes + self._accelerator.process_index
        blocks = self._blocks_of(mine)
        if data.targets:
            support = data.targets.rows([block * length for block in blocks], length)
        else:
            support = Support.empty(len(blocks) * length)
        return Batch(gather_blocks(data.train, blocks, length), support, self._weights(mine, blocks))

    def _blocks_of(self, passed: int) -> list[int]:
        """The blocks of a pass, all processes counted."""
        size, total = self._options.batch, self._blocks
        slots = range(passed * size, (passed + 1) * size)
        return [_order(self._options.seed, slot // total, total)[slot % total] for slot in slots]

    def _weights(self, passed: int, blocks: list[int]) -> Tensor:
        """Weights of a pass's positions: equal for all that count in the step, 0 for the others."""
        if self._data.counted is None:
            return torch.ones(len(blocks) * self._data.block)
        first = passed // self._passes * self._passes
        step = [block for each in range(first, first + self._passes) for block in self._blocks_of(each)]
        share = self._labels(step).mean()
        return torch.from_numpy(self._labels(blocks).astype(np.float32) / (share or 1.0)).float()

    def _labels(self, blocks: list[int]) -> Counted:
        """Which labels of some blocks count, [blocks * block]."""
        counted, length = self._data.counted, self._data.block
        assert counted is not None
        return np.concatenate([counted[block * length + 1 : (block + 1) * length + 1] for block in blocks])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, blocks: int) -> list[int]:
    """The order in which an epoch goes through the blocks."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order: list[int] = torch.randperm(blocks, generator=generator).tolist()
    return order
