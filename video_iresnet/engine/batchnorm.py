"""Running statistics of batch normalization: shared between processes, restored after a bad step."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def share_buffers(model: nn.Module) -> None:
    """Broadcast the buffers of the main process, as DistributedDataParallel does before a forward pass."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


class Statistics:
    """The buffers of a network before a step. A forward pass that is not finite leaves NaN in them for good,
    while the weights can skip the update.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = [buffer.clone() for buffer in model.buffers()]

    @torch.no_grad()
    def keep(self) -> None:
        for before, buffer in zip(self._before, self._model.buffers(), strict=True):
            before.copy_(buffer)

    @torch.no_grad()
    def restore(self, is_bad: Tensor) -> None:
        """Restore the buffers if `is_bad`, a boolean on the device, is True."""
        for before, buffer in zip(self._before, self._model.buffers(), strict=True):
            buffer.copy_(torch.where(is_bad, before, buffer))
