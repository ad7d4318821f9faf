"""Finds operations for which a program would wait for its GPU, on machines without one too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Their result, or its size, depends on numbers on the device.
READS = {
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.repeat_interleave,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
HOST_READS = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.__array__}


class WaitsForDeviceError(AssertionError):
    """An operation that waits for the device."""


@contextmanager
def no_sync(device: str = "cpu") -> Iterator[None]:
    """Raise WaitsForDeviceError for what waits for a device, in this thread.

    `device` is the kind of the tensors that stand for those on a GPU: "cpu" if the code runs on the CPU, or
    "cuda" under FakeTensorMode on a fake GPU, which finds copies in both directions too.
    """
    with _Dispatch(device), _Functions(device):
        yield


class _Dispatch(TorchDispatchMode):
    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        tensors = [value for value in args if isinstance(value, Tensor)]
        on_device = any(tensor.device.type == self.device for tensor in tensors)
        waits = packet in READS and on_device
        if packet in INDEXING and on_device:  # a mask is turned into positions, whose number is read
            waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if packet is aten._to_copy:
            target = torch.device(kwargs.get("device") or args[0].device)
            waits = self._copy_waits(args[0].device, target, kwargs.get("non_blocking", False))
        if packet is aten.copy_:
            blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            waits = self._copy_waits(args[1].device, args[0].device, not blocking)
        if waits:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise WaitsForDeviceError(f"{packet} waits for the device, for {shapes}")
        if func.namespace == "aten":  # in inference mode, composite operations arrive whole
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)

    def _copy_waits(self, source: torch.device, target: torch.device, non_blocking: bool) -> bool:
        """Whether a copy goes to the host, or blocks on the way from it."""
        kinds = source.type == self.device, target.type == self.device
        return kinds == (True, False) or (kinds == (False, True) and not non_blocking)


class _Functions(TorchFunctionMode):
    """On the CPU, these read a tensor without any operation that a dispatch mode sees."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in HOST_READS and args[0].device.type == self.device:
            name = getattr(func, "__name__", func)
            raise WaitsForDeviceError(f"{name} waits for the device, for {tuple(args[0].shape)}")
        return func(*args, **(kwargs or {}))


def on_fake_gpu(network: nn.Module, mode: FakeTensorMode) -> None:
    """Put a network on a fake GPU, in the layout it has. Module.to cannot do that with fake tensors."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    with mode:
                        fake = torch.empty_strided(
                            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda"
                        )
                        is_parameter = isinstance(tensor, nn.Parameter)
                        tensors[name] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
