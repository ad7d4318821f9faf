"""The precision of forward passes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """What autocast computes in on a kind of device; None: everything in float32."""

    device_type: str
    dtype: torch.dtype | None = None

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context of a forward pass. Losses are computed outside, in float32."""
        return torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None)

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients need a scaler: float16 holds none below 6e-8."""
        return self.dtype is torch.float16
