"""The memory before training: a copy of a source, or a smaller model started from it. Knows nothing of training.

whole         all weights of the source
layers        some of its blocks (train/layers.py says which); embedding, final norm and head kept
hidden        a narrower model with fresh weights, its embedding the source's in its D strongest directions (SVD);
              blocks sliced out of the source likewise learned more slowly than fresh ones (benchmarks/LOG.md)
from_scratch  fresh weights throughout, in the shape that the others say
"""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memdec_edge.errors import OptionError

from .checkpoint import write_copy
from .models import Source, blocks_of

Layers = int | list[int] | None  # so many blocks, evenly chosen; these; all
FFN_MULTIPLE = 32  # rows of quantised GGUF weights are made of blocks of 32


def memory_shape(source: Source, layers: Layers, hidden: int | None) -> tuple[Any, list[int]]:
    """The config of a memory, and the indices of the source's blocks that it keeps.

    Raises OptionError for more `layers` than the source has, and for a `hidden` that is not smaller than the source's
    or no multiple of its head size.
    """
    config = copy.deepcopy(source.model.config)
    if hasattr(config, "quantization_config"):  # the mark of a GGUF; the weights are float32 now
        del config.quantization_config
    config.architectures = [type(source.model).__name__]
    kept = _choose_layers(config, layers)
    if hidden is not None:
        _narrow(config, hidden)
    return config, kept


def make_memory(source: Source, layers: Layers, hidden: int | None, seed: int, *, fresh: bool = False) -> Any:
    """A new model in float32 that shares nothing with `source`; the same for a seed. Raises as memory_shape() does.

    fresh  all weights are random, nothing but the shape is the source's
    """
    config, kept = memory_shape(source, layers, hidden)
    torch.manual_seed(seed)  # of fresh weights
    model = type(source.model)(config)
    if fresh:
        return model.eval()
    if hidden is None:
        model.load_state_dict(_select_blocks(source.model, kept))
    else:
        _compress(source.model.get_input_embeddings(), model.get_input_embeddings(), hidden)
        if not config.tie_word_embeddings:
            _compress(source.model.get_output_embeddings(), model.get_output_embeddings(), hidden)
    return model.eval()


def save_copy(source: Source, folder: Path) -> None:
    """Write `source` as a new Hugging Face folder, whole or not at all. Raises OutputError."""
    write_copy(folder, make_memory(source, None, None, 0), source.tokenizer)  # a GGUF's own model cannot be saved


def _choose_layers(config: Any, layers: Layers) -> list[int]:
    """Indices of the blocks to keep; `config` is changed to that many."""
    total = config.num_hidden_layers
    if layers is None:
        return list(range(total))
    count = layers if isinstance(layers, int) else len(layers)
    if count > total:
        raise OptionError("layers", count, f"the source has {total}")
    kept = [round(i * (total - 1) / max(1, count - 1)) for i in range(count)] if isinstance(layers, int) else layers
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]
    return kept


def _select_blocks(model: Any, kept: list[int]) -> dict[str, Tensor]:
    """The state of `model` with only the blocks `kept`, renumbered."""
    prefix = blocks_of(model)[0] + "."
    renumbered = {str(old): str(new) for new, old in enumerate(kept)}
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith(prefix):
            number, rest = name.removeprefix(prefix).split(".", 1)
            if number not in renumbered:
                continue
            name = f"{prefix}{renumbered[number]}.{rest}"
        state[name] = value
    return state


def _narrow(config: Any, hidden: int) -> None:
    """Change `config` to width `hidden`, keeping the head size; fewer heads, and an MLP in proportion."""
    wide, heads = config.hidden_size, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or wide // heads
    if hidden >= wide or hidden % head_size:
        allowed = f"must be below the source's {wide} and a multiple of its head size, {head_size}"
        raise OptionError("hidden", hidden, allowed)
    config.hidden_size, config.num_attention_heads = hidden, hidden // head_size
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = math.gcd(config.num_key_value_heads, config.num_attention_heads)
    if getattr(config, "intermediate_size", None):
        groups = round(config.intermediate_size * hidden / wide / FFN_MULTIPLE)
        config.intermediate_size = max(1, groups) * FFN_MULTIPLE


@torch.no_grad()
def _compress(wide: Any, narrow: Any, hidden: int) -> None:
    """Set `narrow`'s rows to U S of the truncated SVD of `wide`'s, so that their inner products stay closest."""
    matrix = wide.weight.double()
    _, directions = torch.linalg.eigh(matrix.T @ matrix)  # right singular vectors, weakest first
    narrow.weight.copy_(matrix @ directions[:, -hidden:].flip(1))
