"""Teachers: a language model reads a text, and gives each position's key and the log-prob of its next token.

A GGUF stays quantised and runs through llama.cpp (llama_teacher.py); a Hugging Face folder runs through PyTorch. Both
runtimes give both kinds of key:

    mlp_input   the input of the last block's MLP                 (2508.09874, after 1911.00172, section 5)
    hidden      what the head reads: the last hidden state, after the final norm              (2607.27919)

Position p of a token stream is a context, the tokens of p's block up to p, and a next token, stream[p + 1]. Blocks
start at multiples of `block` and do not overlap. A tail shorter than a block is left out. Knows nothing of neighbours.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memdec_edge.errors import NumericsError
from memdec_edge.progress import Advance

from .corpus import Encoder, Tokens
from .head import Predicted, check_head, predict
from .models import Source, last_mlp, work_copy
from .transfer import Coming, send

Array = npt.NDArray[Any]


def n_blocks(tokens: Tokens, block: int) -> int:
    """Whole blocks in a stream. A block needs one token beyond its end: the next one of its last position."""
    return max(0, (len(tokens) - 1) // block)


def spread_blocks(tokens: Tokens, block: int, positions: int) -> list[int]:
    """Numbers of whole blocks, evenly spaced over a stream, with at most `positions` in all, but at least one block."""
    total = n_blocks(tokens, block)
    wanted = min(total, max(1, positions // block))
    return [i * total // wanted for i in range(wanted)]


def gather_blocks(tokens: Tokens, blocks: Sequence[int], block: int) -> Tensor:
    """Tokens of each block and the one after it, int64 [len(blocks), block + 1]."""
    return torch.from_numpy(np.stack([tokens[b * block : (b + 1) * block + 1] for b in blocks]).astype(np.int64))


@dataclass(frozen=True)
class Reading:
    """What a teacher gives of n positions. An array that was not asked for has no rows or no columns."""

    keys: Array  # float16 [n, width]
    logprobs: Array  # float32 [n], of the true next token, in nats
    ids: Array  # uint32 [n, most], the likeliest next tokens, likeliest first
    probs: Array  # float16 [n, most], their probabilities


class Teacher(ABC):
    """A teacher of one kind of key. A subclass reads a few blocks in one pass."""

    name: str
    n_vocab: int  # rows of its embedding
    n_ctx: int  # positions that it was trained for
    width: int  # of a key
    batches_at_once = 1  # those of a step of training that one pass reads

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """How its text becomes tokens. Raises ModelFileError as Source.encoder does."""

    @abstractmethod
    def look(self, ids: Tensor, scored: bool, most: int) -> tuple[Tensor, Predicted]:
        """Keys [blocks * block, width] and predictions of the same positions.

        ids     int64 [blocks, block + 1]
        scored  log-probs of the next tokens are wanted
        most    so many of the likeliest next tokens are wanted
        """

    def read(
        self,
        tokens: Tokens,
        blocks: Sequence[int],
        block: int,
        batch: int,
        advance: Advance,
        *,
        scored: bool = False,
        most: int = 0,
    ) -> Reading:
        """Read the positions of some blocks, `batch * batches_at_once` blocks in one pass.

        scored  give the log-prob of each next token, too
        most    give so many of the likeliest next tokens, too

        Raises NumericsError where a key is NaN or beyond float16, or a prediction is NaN.
        """
        n = len(blocks) * block
        most = min(most, self.n_vocab)
        found = Reading(
            np.empty((n, self.width), np.float16),
            np.empty(n if scored else 0, np.float32),
            np.empty((n, most), np.uint32),
            np.empty((n, most), np.float16),
        )
        ahead: list[tuple[int, Coming]] = []  # a device works on the next pass while the CPU looks at this one
        size = batch * self.batches_at_once
        for start in range(0, len(blocks), size):
            keys, said = self.look(gather_blocks(tokens, blocks[start : start + size], block), scored, most)
            probs = said.probs.to(torch.float16)
            ahead.append((start * block, Coming([keys.to(torch.float16), said.losses, said.ids, probs])))
            if len(ahead) > 1:
                advance(self._enter(found, *ahead.pop(0)))
        for each in ahead:
            advance(self._enter(found, *each))
        return found

    def _enter(self, found: Reading, first: int, coming: Coming) -> int:
        """Write what look() gave of some positions, the first of which is `first`, into `found`; how many they are."""
        keys, losses, ids, probs = coming.wait()
        rows = slice(first, first + len(keys))
        found.keys[rows] = keys
        if not np.isfinite(found.keys[rows]).all():
            raise NumericsError(f"teacher {self.name}: a key is NaN or too large for float16; use another teacher")
        if losses.isnan().any():
            raise NumericsError(f"teacher {self.name}: a prediction is NaN; use another teacher")
        if len(found.logprobs):
            found.logprobs[rows] = -losses
        if found.ids.shape[1]:
            found.ids[rows], found.probs[rows] = ids, probs
        return len(keys)


class TorchTeacher(Teacher):
    """A teacher on a device, in the device's fastest type that keeps the accuracy."""

    def __init__(self, source: Source, kind: str, device: torch.device) -> None:
        self._source, self.name, self.n_vocab = source, source.name, source.n_vocab
        self.n_ctx, self.width = source.model.config.max_position_embeddings, source.model.config.hidden_size
        self._device = device
        if device.type == "cuda":  # no activation waits for a backward pass, and calls cost as much as arithmetic
            self.batches_at_once = 4
        check_head(source.model)  # the log-probs are computed without its own head
        self._model = work_copy(source.model, device)
        self._caught: Tensor
        if kind == "mlp_input":
            last_mlp(self._model).register_forward_pre_hook(lambda module, args: self._catch(args[0]))
        else:
            self._model.base_model.register_forward_hook(lambda module, args, out: self._catch(out.last_hidden_state))

    @property
    def encoder(self) -> Encoder:
        return self._source.encoder

    def _catch(self, found: Tensor) -> None:
        self._caught = found

    @torch.inference_mode()
    def look(self, ids: Tensor, scored: bool, most: int) -> tuple[Tensor, Predicted]:
        ids, predicted = send(ids, self._device), Predicted.nothing()
        if scored or most:
            predicted = predict(self._model, ids, most)
        else:
            self._model.base_model(input_ids=ids[:, :-1], use_cache=False)
        return self._caught.flatten(0, 1), predicted
