"""A mode that fails on operations which wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::equal",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
}


class NoSync(TorchDispatchMode):
    """Raise AssertionError where the host would wait for a device: a tensor becomes a number, the size of a
    result depends on values, or a tensor is copied to the CPU from elsewhere.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name().split(".")[0]
        assert name not in WAITING, f"{name} waits for the device"
        device = kwargs.get("device")
        if name == "aten::_to_copy" and device is not None and torch.device(device).type == "cpu":
            assert args[0].device.type == "cpu", "a copy to the host waits for the device"
        return func(*args, **kwargs)
