"""The precision of forward passes, and the check of half precision before a run trusts it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.distributed import Processes
from ..runtime.environment import device_name
from ..runtime.errors import InputError
from ..runtime.logging import log
from ..runtime.storage import atomic_write, remove_leftovers
from .probe import ROUNDING, Layer, Measured, convolutions, probe, verdict, wrong_parts

# From 9.8 to 9.14 cuDNN computes 3D convolutions in half precision wrongly, and from 2.9 on PyTorch avoids it
# there, which is slow: github.com/pytorch/pytorch/issues/163539 and 166643.
WRONG_CUDNN = range(90800, 91500)


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


def check(
    network: nn.Module,
    precision: Precision,
    size: Sequence[int],
    *,
    processes: Processes,
    training: bool,
    keep_float32: bool,
) -> list[str]:
    """Compare the convolutions in half precision with float32, for inputs (B, 3, T, H, W).

    Those that are wrong or slow compute in float32 from now on, on all processes, and their names are
    returned. Raises InputError for them unless `keep_float32`, and if the device lacks the precision. The
    first process of each machine measures, and results are remembered.
    """
    if precision.dtype is None:
        return []
    results: list[Measured] = []
    with processes.together():
        if not supports(processes.device, precision.dtype):
            raise InputError(_unsupported(processes.device, precision.dtype, training))
        if processes.rank % processes.local_size == 0:
            results = _measured(network, size, processes.device, precision.dtype, training)
    bad: dict[str, str] = {}
    for found in processes.gather(problems(results, precision.dtype)):
        bad |= found
    if bad and not keep_float32:
        raise InputError(_refusal(bad, processes.device, precision.dtype, training))
    if bad:
        keep_in_float32(network, bad)
        log.warning(
            "computing in float32 what is wrong or slow in %s: %s",
            _name(precision.dtype),
            ", ".join(bad),
        )
    elif results:
        log.info("%s%s", _summary(results, precision.dtype), _release(processes.device))
    return list(bad)


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device computes convolutions in half precision, other than by slow reference code."""
    if device.type == "cuda":
        return dtype is torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    mkldnn = torch.ops.mkldnn
    supported = (
        mkldnn._is_mkldnn_bf16_supported if dtype is torch.bfloat16 else mkldnn._is_mkldnn_fp16_supported
    )
    return bool(supported())


class InFloat32(nn.Module):
    """Computes a layer in float32 whatever autocast says; the output has autocast's type, as that of other
    layers. To be the first base of a class.
    """

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return super().forward(x)  # type: ignore[no-any-return]
        with torch.autocast(kind, enabled=False):
            output: Tensor = super().forward(x.float())
        return output.to(torch.get_autocast_dtype(kind))


def keep_in_float32(network: nn.Module, names: Collection[str]) -> None:
    """Let layers compute in float32. They remain the same modules with the same parameters."""
    for name in names:
        module = network.get_submodule(name)
        if not isinstance(module, InFloat32):
            module.__class__ = type(f"{type(module).__name__}InFloat32", (InFloat32, type(module)), {})


def _measured(
    network: nn.Module, size: Sequence[int], device: torch.device, dtype: torch.dtype, training: bool
) -> list[Measured]:
    """Return the remembered results, or else measure; with fewer clips where the memory is too small."""
    while True:
        layers = convolutions(network, size, training=training)
        try:
            return remembered(network, layers, device, dtype)
        except torch.OutOfMemoryError:
            if size[0] == 1:
                raise
            size = (size[0] // 2, *size[1:])
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()


def remembered(
    network: nn.Module, layers: Sequence[Layer], device: torch.device, dtype: torch.dtype
) -> list[Measured]:
    """Return the results of `probe`, from the cache if the same layers were measured by the same versions on
    this device of this machine.
    """
    about = {
        "machine": [platform.node(), *_device_versions(device)],
        "torch": torch.__version__,
        "dtype": _name(dtype),
        "layers": json.loads(json.dumps(layers)),
    }
    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "video_iresnet"
    path = folder / f"precision_{name}.json"
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):  # absent or damaged
        stored = json.loads(path.read_text())
        if stored["about"] == about:
            pairs = zip(layers, stored["results"], strict=True)
            return [_stored_result(layer, errors, seconds) for layer, (errors, seconds) in pairs]
    results = probe(network, layers, device, dtype)
    with suppress(OSError, InputError):  # a cache that cannot be written
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with atomic_write(path) as file:
            stored = {"about": about, "results": [(result.errors, result.seconds) for result in results]}
            json.dump(stored, file)
    return results


def _stored_result(layer: Layer, errors: dict[str, Any], seconds: list[Any]) -> Measured:
    """Raises KeyError, ValueError or TypeError if these are not the numbers of a layer."""
    exact, half = (float(number) for number in seconds)
    return Measured(layer, {part: float(errors[part]) for part in layer.parts()}, (exact, half))


def _device_versions(device: torch.device) -> list[Any]:
    """Return what results depend on besides the layers and PyTorch."""
    if device.type == "cuda":
        cudnn = torch.backends.cudnn
        versions = [torch.version.cuda, cudnn_version(), cudnn.allow_tf32, cudnn.benchmark]
    else:
        versions = [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    return [device_name(device), *versions]


def cudnn_version() -> int:
    """Return 91002 for 9.10.2, and 0 without cuDNN."""
    return int(torch.backends.cudnn.version() or 0)  # type: ignore[no-untyped-call]


def problems(results: Sequence[Measured], dtype: torch.dtype) -> dict[str, str]:
    """Return {name of a convolution: what is wrong with it}, the wrong ones first."""
    found: dict[str, dict[str, str]] = {"wrong": {}, "slow": {}}
    rounding = 100 * ROUNDING * torch.finfo(dtype).eps
    for result in results:
        kind = verdict(result, results, dtype)
        text = ""
        if kind == "wrong":
            part = wrong_parts(result, dtype)[0]
            error = result.errors[part]
            off = f"off by {100 * error:.1f} %, where rounding gives {rounding:.1g} %"
            text = f"the {part} of {result.layer} is {off if math.isfinite(error) else 'not finite'}"
        elif kind == "slow":
            exact, half = (1000 * seconds for seconds in result.seconds)
            text = f"{result.layer} takes {half:.3g} ms, where float32 takes {exact:.3g}"
        if kind:
            found[kind] |= dict.fromkeys(result.layer.names, text)
    return found["wrong"] | found["slow"]


def _unsupported(device: torch.device, dtype: torch.dtype, training: bool) -> str:
    cost = ""
    if device.type == "cpu":
        needed = "AVX512-BF16 or AMX" if dtype is torch.bfloat16 else "AVX512-FP16 or AMX-FP16"
        cost = f" ({needed}), without which a convolution takes up to 70 times as long as in float32"
    return (
        f"{_key(training)} is True, but {device_name(device)} has no instructions for {_name(dtype)}{cost}; "
        f"set {_remedies(device, dtype, training)}"
    )


def _refusal(problems: dict[str, str], device: torch.device, dtype: torch.dtype, training: bool) -> str:
    first, *others = dict.fromkeys(problems.values())
    more = f", and {len(others)} more" if others else ""
    return (
        f"{_name(dtype)} cannot be trusted on {device_name(device)}: {first}{more}{_release(device)}; set "
        f"TRAIN.HALF_PROBLEMS float32 to compute such layers in float32, or "
        f"{_remedies(device, dtype, training)}"
    )


def _remedies(device: torch.device, dtype: torch.dtype, training: bool) -> str:
    other = torch.float16 if dtype is torch.bfloat16 else torch.bfloat16
    change = f"TRAIN.HALF_DTYPE {_name(other)}, or " if supports(device, other) else ""
    return f"{change}{_key(training)} False"


def _release(device: torch.device) -> str:
    """Return a remark on the release of cuDNN, if it is one of the wrong ones."""
    version = cudnn_version() if device.type == "cuda" else 0
    if version not in WRONG_CUDNN:
        return ""
    return f" (cuDNN {version // 10000}.{version // 100 % 100} is known for wrong ones; 9.15 or later is not)"


def _summary(results: Sequence[Measured], dtype: torch.dtype) -> str:
    exact, half = (sum(len(r.layer.names) * r.seconds[i] for r in results) for i in (0, 1))
    worst = max(max(result.errors.values()) for result in results)
    return (
        f"convolutions in {_name(dtype)} agree with float32 (errors of {100 * worst:.1g} % at most) and take "
        f"{half / exact:.2f} of its time"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _key(training: bool) -> str:
    return "TRAIN.MIXED_PRECISION" if training else "TEST.MIXED_PRECISION"
