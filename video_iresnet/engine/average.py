"""The exponential moving average of a network (EMA)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..models import ResNet
from .checkpoint import load_model_state


class Average:
    """A network whose parameters and buffers are the moving average of another's over the steps.

    The numbers are those of torch's AveragedModel with `use_buffers`, whose own update waits for the device
    at each step: the first update copies, then `average = decay * average + (1 - decay) * value`. Whole
    numbers (num_batches_tracked) are copied.
    """

    def __init__(self, network: ResNet, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, network: ResNet) -> None:
        pairs = zip(
            [*self.network.parameters(), *self.network.buffers()],
            [*network.parameters(), *network.buffers()],
            strict=True,
        )
        averages: tuple[list[Any], list[Any]] = [], []
        for average, value in pairs:
            if self.updates and value.is_floating_point():
                averages[0].append(average)
                averages[1].append(value.detach())
            else:
                average.copy_(value)
        if averages[0]:
            self._average(*averages, self.updates)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"ema_state": self.network.state_dict(), "ema_updates": self.updates}

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Raises WeightsError, naming `source`, if this is the state of another network."""
        load_model_state(self.network, state["ema_state"], source)
        self.updates = state["ema_updates"]
