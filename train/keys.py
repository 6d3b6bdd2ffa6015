"""The datastore: keys of the teacher at every position, float16, in shards. Knows nothing of neighbours.

Position p of a token stream is a context (the tokens of p's block up to p) with a next token, stream[p + 1]. Blocks do
not overlap and start at multiples of `block`; a tail shorter than a block is left out.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from memdec_edge.errors import NumericsError

from .corpus import Tokens
from .source import Source, cast_parameters, last_mlp, work_dtype

KIND = "mlp_input"  # what a key is: the input of the last block's MLP (2508.09874)


def n_blocks(tokens: Tokens, block: int) -> int:
    """Whole blocks in a stream; each needs one token more, the last position's next one."""
    return max(0, (len(tokens) - 1) // block)


class Teacher:
    """A teacher on a device, in the device's fastest trustworthy type; gives keys and log-probs of blocks."""

    def __init__(self, source: Source, device: torch.device) -> None:
        self._device = device
        self._name = source.name
        self._model = copy.deepcopy(source.model).to(device)
        cast_parameters(self._model, work_dtype(device.type))
        last_mlp(self._model).register_forward_pre_hook(self._catch)
        self._caught: Tensor

    def _catch(self, module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        self._caught = args[0]

    @torch.inference_mode()
    def keys(
        self, tokens: Tokens, blocks: Sequence[int], block: int, batch: int, done: Callable[[int], None]
    ) -> np.ndarray:
        """Inputs of the last block's MLP, float16 [len(blocks) * block, hidden]; `done` is told the tokens done."""
        parts = []
        for ids in self._batches(tokens, blocks, block, batch):
            self._model.base_model(input_ids=ids[:, :-1], use_cache=False)
            parts.append(self._key_rows())
            done(ids[:, 1:].numel())
        return np.concatenate(parts)

    @torch.inference_mode()
    def keys_and_logprobs(
        self, tokens: Tokens, blocks: Sequence[int], block: int, batch: int, done: Callable[[int], None]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As keys(), and the teacher's log-prob of each true next token, float32 [len(blocks) * block]."""
        parts, scores = [], []
        for ids in self._batches(tokens, blocks, block, batch):
            logits = self._model(input_ids=ids[:, :-1], use_cache=False).logits
            parts.append(self._key_rows())
            scores.append(-cross_entropy(logits, ids[:, 1:]).cpu().numpy())
            done(ids[:, 1:].numel())
        return np.concatenate(parts), np.concatenate(scores)

    def _batches(self, tokens: Tokens, blocks: Sequence[int], block: int, batch: int) -> Iterator[Tensor]:
        for start in range(0, len(blocks), batch):
            yield gather_blocks(tokens, blocks[start : start + batch], block).to(self._device)

    def _key_rows(self) -> np.ndarray:
        keys = self._caught.flatten(0, 1).to(torch.float16).cpu()
        if not keys.isfinite().all():
            raise NumericsError(f"teacher {self._name}: a key is NaN or too large for float16; use another teacher")
        return keys.numpy()


def gather_blocks(tokens: Tokens, blocks: Sequence[int], block: int) -> Tensor:
    """Tokens of each block and the one after it, int64 [len(blocks), block + 1]."""
    return torch.from_numpy(np.stack([tokens[b * block : (b + 1) * block + 1] for b in blocks]).astype(np.int64))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) of each position in nats, float32 [batch * length]; one block's logits in float32 at a time.

    logits  [batch, length, n_vocab]; labels  int64 [batch, length]
    """
    losses = (
        torch.nn.functional.cross_entropy(row.float(), label, reduction="none")
        for row, label in zip(logits, labels, strict=True)
    )
    return torch.cat(list(losses))
