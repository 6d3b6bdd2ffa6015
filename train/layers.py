"""The blocks of a model that a smaller one keeps: those that the model would miss most on a text.

Blocks are left out one at a time, always the one whose absence raises the loss least. Half of SmolLM2-135M's 30 blocks,
chosen so and trained on 49,000 tokens, mix far better than evenly chosen ones (benchmarks/LOG.md). The mean turn of the
hidden state in a block (2403.03853) is cheaper to find, but does not see what blocks are to each other. Knows nothing
of training.
"""

import torch
from torch import Tensor

from memdec_edge.progress import progress

from .head import predict
from .models import Source, blocks_of, work_copy

POSITIONS = 512  # of the text, on which the loss is measured


@torch.no_grad()
def choose_layers(source: Source, layers: int, ids: Tensor, device: torch.device) -> list[int]:
    """Indices of the `layers` blocks to keep, ascending. Of blocks that are missed equally the first is left out.

    ids  int64 [blocks, block + 1], text of the domain
    """
    model = work_copy(source.model, device)
    name, blocks = blocks_of(model)
    path, _, last = name.rpartition(".")
    parent, types = model.get_submodule(path), getattr(model.config, "layer_types", None)

    def loss(kept: list[int]) -> float:
        setattr(parent, last, torch.nn.ModuleList(blocks[i] for i in kept))
        model.config.num_hidden_layers = len(kept)
        if types:
            model.config.layer_types = [types[i] for i in kept]
        found = float(predict(model, ids.to(device)).losses.mean())
        advance(1)
        return found

    kept = list(range(len(blocks)))
    with progress("choosing layers", sum(range(layers + 1, len(kept) + 1)), "passes") as advance:
        while len(kept) > layers:
            kept.remove(min(kept, key=lambda gone: loss([i for i in kept if i != gone])))
    return kept
