"""Batch normalization in distributed training."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn


def share_buffers(model: nn.Module) -> None:
    """Broadcast the buffers of the main process, as DistributedDataParallel does before a forward pass."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
