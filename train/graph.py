"""The body of a model as a CUDA graph: one call starts all kernels of a pass, which number thousands.

A small model's kernels end sooner than a CPU can start the next ones, so the CPU decides the rate of training. A graph
holds them all, forward and backward, for batches of one shape. Knows nothing of head, loss and optimiser.
"""

import sys

import torch
from torch import Tensor

from .head import last_hidden
from .limits import is_out_of_memory


class Body(torch.nn.Module):
    """last_hidden() of one model, plain or as a graph."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return last_hidden(self.model, ids)

    def release(self) -> None:
        """Free a graph and the memory of its activations. This module holds it, and it holds this module."""
        vars(self).pop("forward", None)


def graphed_body(model: torch.nn.Module, batch: int, length: int) -> Body:
    """The body of `model` for ids [batch, length + 1]; a graph on CUDA in bfloat16, the plain body elsewhere.

    The model stays what it is, and its parameters may change in place. What runs in float32 stays plain: autograd would
    hand out the graph's own buffers as gradients, and the next pass would overwrite them.
    """
    body, some = Body(model), next(model.parameters())
    if some.device.type != "cuda" or some.dtype != torch.bfloat16:
        return body
    ids = torch.zeros(batch, length + 1, dtype=torch.int64, device=some.device)
    try:
        torch.cuda.make_graphed_callables(body, (ids,), allow_unused_input=True)  # changes its forward
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        print(f"steps take longer: {type(model).__name__} makes no CUDA graph ({error})", file=sys.stderr)
    return body
