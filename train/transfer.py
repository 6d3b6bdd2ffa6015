"""Tensors between a device and the CPU, such that neither waits for the other where the device is CUDA.

Knows nothing of what they hold.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`. CUDA copies it out of pinned memory when its turn comes."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Coming:
    """Tensors on their way to the CPU. What the device computes after this was made does not delay them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # Without waiting only from CUDA: there the copy is pinned, and an event says when it is done.
        self._tensors = [each.to("cpu", non_blocking=each.is_cuda) for each in tensors]
        on_cuda = next((each.device for each in tensors if each.is_cuda), None)
        self._done = torch.cuda.current_stream(on_cuda).record_event() if on_cuda else None

    def wait(self) -> list[Tensor]:
        """The tensors, on the CPU."""
        if self._done:
            self._done.synchronize()
        return self._tensors
