"""A network compiled for testing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.errors import InputError, reason
from ..runtime.logging import log
from .precision import Precision


class FullBatches(nn.Module):
    """(n, ...) -> the outputs of the network for n inputs, which always sees batches of `size`: smaller ones
    are padded with zeros.

    A compiled network has another program for each size, and their sums differ in the last digits; with one
    size, results do not depend on the batches that a process saw before.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, inputs: Tensor) -> Tensor:
        missing = self.size - len(inputs)
        full = F.pad(inputs, [0, 0] * (inputs.dim() - 1) + [0, missing]) if missing else inputs
        outputs: Tensor = self.network(full)
        return outputs[: len(inputs)]


def compiled(
    network: nn.Module, size: Sequence[int], precision: Precision, device: torch.device
) -> nn.Module:
    """Compile a network in evaluation mode for batches of up to (B, 3, T, H, W). On the CPU, weights become
    constants, which are laid out as its convolutions need them.

    Raises InputError if it cannot be compiled here.
    """
    from torch._inductor import config  # the import takes as long as that of torch

    program = torch.compile(network.eval(), dynamic=False)
    model = FullBatches(cast(nn.Module, program), size[0])
    freezing = config.patch(freezing=device.type == "cpu")
    begin = time.perf_counter()
    try:
        with torch.inference_mode(), precision.autocast(), freezing:
            model(torch.zeros(*size, device=device).to(memory_format=torch.channels_last_3d))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise InputError(
            f"TEST.COMPILE is True, but torch.compile fails here ({reason(error)}); set it to False"
        ) from error
    log.info("compiled the network in %.0f s", time.perf_counter() - begin)
    return model
