"""The body of a model as a CUDA graph: one call starts all kernels of a pass, which number thousands.

A small model's kernels end sooner than a CPU can start the next ones, so the CPU decides the rate of training. A graph
holds them all, forward and backward, for batches of one shape. It keeps its activations, and a gradient of each weight,
from pass to pass. Knows nothing of loss and optimiser.
"""

import gc

import torch
from torch import Tensor

from memdec_edge.notes import note
from memdec_edge.progress import is_first_process

from .head import last_hidden


class Body(torch.nn.Module):
    """last_hidden() of one model, plain or as a graph."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return last_hidden(self.model, ids)

    @property
    def is_graph(self) -> bool:
        """Whether calls run a graph: PyTorch puts it in the place of forward()."""
        return "forward" in vars(self)

    def release(self) -> None:
        """Go back to the plain body, and free the memory of the graph."""
        if self.is_graph:
            del self.forward
            gc.collect()  # PyTorch wraps a graph in a class, which refers to itself


def graphed_body(model: torch.nn.Module, batch: int, length: int) -> Body:
    """The body of `model` for ids [batch, length + 1]; a graph on CUDA in bfloat16, the plain body elsewhere.

    Where no graph can be made a note says why, and the body is plain. The model stays what it is, and its parameters
    may change in place. What runs in float32 stays plain: autograd would hand out the graph's own buffers as gradients,
    and the next pass would overwrite them.
    """
    body, some = Body(model), next(model.parameters())
    if some.device.type != "cuda" or some.dtype != torch.bfloat16:
        return body
    ids = torch.zeros(batch, length + 1, dtype=torch.int64, device=some.device)
    stream = torch.cuda.current_stream()
    gc.collect()
    gc.disable()  # to free another graph would spoil the one that is made
    try:
        torch.cuda.make_graphed_callables(body, (ids,), allow_unused_input=True)  # in the place of its forward()
        _expect_another_stream()
    except RuntimeError as error:
        torch.cuda.set_stream(stream)  # a capture that failed has left its own
        if is_first_process():
            reason = str(error).strip().split("\n")[0]
            note(f"steps take longer: {type(model).__name__} makes no CUDA graph ({reason})")
    finally:
        gc.enable()
    return body


def _expect_another_stream() -> None:
    """Keep PyTorch from warning that gradients are added on the stream of the warm-up: the order is right."""
    if expect := getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None):  # from 2.10 on
        expect(False)
