"""A GGUF as a teacher, through llama.cpp. Importing this needs llama-cpp-python. Knows nothing of PyTorch models."""

from pathlib import Path

import torch
from torch import Tensor

from memdec_edge.errors import ModelFileError
from memdec_edge.files import shown_name
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.llama.tap import Tap
from memdec_edge.options import LoadOptions

from .corpus import Encoder
from .head import Predicted
from .models import gguf_encoder
from .teacher import Teacher

LLAMA_BATCH = 256  # tokens in one pass of llama.cpp, which keeps logits of each: 155 MB at 151,936


class LlamaTeacher(Teacher):
    """A GGUF through llama.cpp: its weights stay quantised; beside them it needs one block's KV cache."""

    def __init__(self, path: Path, kind: str) -> None:
        options = LoadOptions(n_batch=LLAMA_BATCH)
        self._model, self._options = Model(path, n_gpu_layers=options.n_gpu_layers), options
        self.name, self.n_vocab = Path(shown_name(path)).stem, self._model.n_vocab
        self.n_ctx, self.width = self._model.n_ctx_train, self._model.n_embd
        tensor = f"ffn_norm-{self._model.n_layer - 1}" if kind == "mlp_input" else "result_norm"
        self._tap = Tap(tensor, self.width, LLAMA_BATCH)
        self._context: Context | None = None

    @property
    def encoder(self) -> Encoder:
        return gguf_encoder(self._model)

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
