"""Teachers: a language model reads a text, and gives each position's key and the log-prob of its next token.

A GGUF stays quantised and runs through llama.cpp; a Hugging Face folder runs through PyTorch. Both runtimes give both
kinds of key:

    mlp_input   the input of the last block's MLP                 (2508.09874, after 1911.00172, section 5)
    hidden      what the head reads: the last hidden state, after the final norm              (2607.27919)

Position p of a token stream is a context, the tokens of p's block up to p, and a next token, stream[p + 1]. Blocks
start at multiples of `block` and do not overlap. A tail shorter than a block is left out. Knows nothing of neighbours.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memdec_edge.errors import ModelFileError, NumericsError
from memdec_edge.files import shown_name
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.llama.tap import Tap
from memdec_edge.options import LoadOptions
from memdec_edge.progress import Advance

from .corpus import Encoder, Tokens
from .head import Predicted, check_head, predict
from .models import Source, gguf_encoder, last_mlp, load_source, work_copy

LLAMA_BATCH = 256  # tokens in one pass of llama.cpp, which keeps logits of each: 155 MB at 151,936
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
    encoder: Encoder
    n_vocab: int  # rows of its embedding
    n_ctx: int  # positions that it was trained for
    width: int  # of a key

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
        """Read the positions of some blocks, `batch` blocks in one pass.

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
        for start in range(0, len(blocks), batch):
            ids = gather_blocks(tokens, blocks[start : start + batch], block)
            keys, predicted = self.look(ids, scored, most)
            rows = slice(start * block, start * block + len(keys))
            found.keys[rows] = keys.to(torch.float16).cpu()
            if not np.isfinite(found.keys[rows]).all():
                raise NumericsError(f"teacher {self.name}: a key is NaN or too large for float16; use another teacher")
            if predicted.losses.isnan().any():
                raise NumericsError(f"teacher {self.name}: a prediction is NaN; use another teacher")
            if scored:
                found.logprobs[rows] = -predicted.losses.cpu()
            if most:
                found.ids[rows], found.probs[rows] = predicted.ids.cpu(), predicted.probs.to(torch.float16).cpu()
            advance(len(keys))
        return found


class TorchTeacher(Teacher):
    """A teacher on a device, in the device's fastest type that keeps the accuracy."""

    def __init__(self, source: Source, kind: str, device: torch.device) -> None:
        self.name, self.encoder, self.n_vocab = source.name, source.encoder, source.n_vocab
        self.n_ctx, self.width = source.model.config.max_position_embeddings, source.model.config.hidden_size
        self._device = device
        check_head(source.model)  # the log-probs are computed without its own head
        self._model = work_copy(source.model, device)
        self._caught: Tensor
        if kind == "mlp_input":
            last_mlp(self._model).register_forward_pre_hook(lambda module, args: self._catch(args[0]))
        else:
            self._model.base_model.register_forward_hook(lambda module, args, out: self._catch(out.last_hidden_state))

    def _catch(self, found: Tensor) -> None:
        self._caught = found

    @torch.inference_mode()
    def look(self, ids: Tensor, scored: bool, most: int) -> tuple[Tensor, Predicted]:
        ids, predicted = ids.to(self._device), Predicted.nothing()
        if scored or most:
            predicted = predict(self._model, ids, most)
        else:
            self._model.base_model(input_ids=ids[:, :-1], use_cache=False)
        return self._caught.flatten(0, 1), predicted


class LlamaTeacher(Teacher):
    """A GGUF through llama.cpp: its weights stay quantised; beside them it needs one block's KV cache."""

    def __init__(self, path: Path, kind: str) -> None:
        options = LoadOptions(n_batch=LLAMA_BATCH)
        self._model, self._options = Model(path, n_gpu_layers=options.n_gpu_layers), options
        self.name = Path(shown_name(path)).stem
        self.encoder, self.n_vocab = gguf_encoder(self._model), self._model.n_vocab
        self.n_ctx, self.width = self._model.n_ctx_train, self._model.n_embd
        tensor = f"ffn_norm-{self._model.n_layer - 1}" if kind == "mlp_input" else "result_norm"
        self._tap = Tap(tensor, self.width, LLAMA_BATCH)
        self._context: Context | None = None

    def look(self, ids: Tensor, scored: bool, most: int) -> tuple[Tensor, Predicted]:
        length = ids.shape[1] - 1
        if self._context is None or self._context.n_ctx < length:
            self._context = Context(self._model, self._options, length, tap=self._tap)
        self._tap.last = not (scored or most)
        keys, predicted = [], [Predicted.nothing()]
        for block in ids:
            self._context.truncate(0)
            for start in range(0, length, LLAMA_BATCH):
                part = block[start : min(start + LLAMA_BATCH, length) + 1]
                self._context.decode([(0, part[:-1].tolist())])
                rows = self._tap.take()
                if len(rows) < len(part) - 1:
                    reason = f"llama.cpp computes no {self._tap.name} for it; choose another `key`"
                    raise ModelFileError(self._model.path, reason)
                keys.append(torch.from_numpy(rows.copy()))
                if scored or most:
                    logits = torch.from_numpy(self._context.rows(0, len(rows)))
                    predicted.append(Predicted.of(logits, part[1:], most))
        return torch.cat(keys), Predicted.join(predicted)


def open_teacher(path: Path, kind: str, device: torch.device, source: Source | None = None) -> Teacher:
    """A GGUF file or a Hugging Face folder as a teacher of keys of this kind, "mlp_input" or "hidden".

    source  the folder's model, where it is loaded already

    Raises MissingFileError, ModelFileError, and LibraryError where llama.cpp cannot be tapped.
    """
    if path.is_file():
        return LlamaTeacher(path, kind)
    return TorchTeacher(source or load_source(path), kind, device)
