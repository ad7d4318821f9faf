"""The convolutions of a network in half precision against float32: errors and times on this device."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..runtime.devices import synchronize

# Relative L2 errors in epsilons of the half precision. A right convolution adds up products in float32 and
# rounds once: 0.20 to 0.23 on a CPU with AVX512-BF16 for all convolutions of iR3D-18, iR3D-50 and iRG3D-50.
# Partial sums in half precision, as some GPU kernels have them, may add a few; wrong ones had 126.
ROUNDING, LARGEST_ERROR = 0.21, 8
# Slow: longer than float32 by this factor, and all layers that are alike by this fraction of the network's
# time and this number of seconds. Less is noise, or overheads that do not matter.
SLOW, SLOW_FRACTION, SLOW_SECONDS = 1.25, 0.02, 1e-3
# Times are the least of some rounds: at least two, and up to twenty within this number of seconds. Layers
# that seem slow are measured again, up to three times.
ROUNDS, ROUND_SECONDS, AGAIN = (2, 20), 0.1, 3
OUTPUT, INPUT_GRADIENT, WEIGHT_GRADIENT = "output", "input gradient", "weight gradient"


class Layer(NamedTuple):
    """The convolutions of a network that are alike. `inputs` is the shape of their input; the last two say
    which gradients training needs.
    """

    names: tuple[str, ...]
    kind: str
    inputs: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    input_gradient: bool
    weight_gradient: bool

    def parts(self) -> list[str]:
        """Return the names of what is compared."""
        return [
            OUTPUT,
            *([INPUT_GRADIENT] if self.input_gradient else []),
            *([WEIGHT_GRADIENT] if self.weight_gradient else []),
        ]

    def __str__(self) -> str:
        """Such as `layer1.0.conv1 (3x3x3, 64 -> 64 channels, input 1x64x8x56x56)`."""
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        channels = f"{self.inputs[1]} -> {self.weight[0]} channels"
        if self.groups > 1:
            channels += f" in {self.groups} groups"
        return f"{self.names[0]}{more} ({by(self.weight[2:])}, {channels}, input {by(self.inputs)})"


class Measured(NamedTuple):
    """A layer in half precision: relative L2 errors by name, and seconds (float32, half)."""

    layer: Layer
    errors: dict[str, float]
    seconds: tuple[float, float]

    def excess(self) -> float:
        """Return the seconds that float32 would save in all layers that are alike."""
        return len(self.layer.names) * (self.seconds[1] - self.seconds[0])


def by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def convolutions(network: nn.Module, size: Sequence[int], *, training: bool) -> list[Layer]:
    """Return the distinct convolutions for an input (B, 3, T, H, W), by a forward pass on the meta device."""
    memo: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    model = copy.deepcopy(network, memo).eval()  # in training, BN refuses a single number per channel
    names: dict[Layer, list[str]] = {}

    def note(name: str, module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        layer = Layer(
            (), type(module).__qualname__, tuple(inputs[0].shape), tuple(module.weight.shape),
            module.stride, module.padding, module.dilation, module.groups, module.bias is not None,
            training and inputs[0].requires_grad, training and module.weight.requires_grad,
        )  # fmt: skip
        names.setdefault(layer, []).append(name)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(functools.partial(note, name))
    with torch.set_grad_enabled(training):
        model(torch.empty(*size, device="meta"))
    return [layer._replace(names=tuple(found)) for layer, found in names.items()]


def probe(
    network: nn.Module, layers: Sequence[Layer], device: torch.device, dtype: torch.dtype
) -> list[Measured]:
    """Run each layer forward, and backward as far as training needs it, in float32 and in half precision.

    Weights and inputs are random, and the same numbers for both. Takes two runs or more of the network.
    """
    modules = dict(network.named_modules())
    trials = [_Trial(layer, modules[layer.names[0]], device, dtype) for layer in layers]
    results = [trial.measure() for trial in trials]
    with _undisturbed(device):
        for number in [*range(len(trials))] * AGAIN:
            if verdict(results[number], results, dtype) == "slow":
                results[number] = trials[number].measure()
    return results


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Use one thread on a CPU. With more, other programs on its cores slow half precision more than float32,
    as it has more steps at which threads wait for each other.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def verdict(result: Measured, results: Sequence[Measured], dtype: torch.dtype) -> str:
    """Return "wrong", "slow" or an empty text. `results`: those of all layers."""
    if wrong_parts(result, dtype):
        return "wrong"
    total = sum(len(other.layer.names) * other.seconds[0] for other in results)
    matters = result.excess() > max(SLOW_SECONDS, SLOW_FRACTION * total)
    return "slow" if matters and result.seconds[1] > SLOW * result.seconds[0] else ""


def wrong_parts(result: Measured, dtype: torch.dtype) -> list[str]:
    """Return what is not finite or beyond rounding: output or gradients."""
    limit = LARGEST_ERROR * torch.finfo(dtype).eps
    return [name for name, error in result.errors.items() if not error <= limit]


HEADERS = ("convolution", "layers", "output", "input gradient", "weight gradient", "float32, ms", "half, ms",
           "times as fast", "verdict")  # fmt: skip


def rows(results: Sequence[Measured], dtype: torch.dtype) -> list[tuple[str, ...]]:
    """Return the rows of a table with HEADERS. Errors are in epsilons of the half precision; times are of one
    layer.
    """
    eps = torch.finfo(dtype).eps
    parts = (OUTPUT, INPUT_GRADIENT, WEIGHT_GRADIENT)
    return [
        (
            str(result.layer),
            str(len(result.layer.names)),
            *(f"{result.errors[part] / eps:.2f}" if part in result.errors else "-" for part in parts),
            *(f"{1000 * seconds:.2f}" for seconds in result.seconds),
            f"{result.seconds[0] / result.seconds[1]:.2f}",
            verdict(result, results, dtype) or "right",
        )
        for result in results
    ]


class _Trial:
    """A layer with random weights, and the precision to compare."""

    def __init__(self, layer: Layer, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.layer = layer
        self.device = device
        self.dtype = dtype
        self._original = module

    def measure(self) -> Measured:
        """Compute and compare."""
        module = self._module()
        rng = torch.Generator(self.device).manual_seed(1)
        inputs = self._random(self.layer.inputs, rng)
        with torch.no_grad():
            shape = module(inputs.float()).shape
        gradient = self._random(shape, rng)
        exact = functools.partial(self._compute, module, inputs.float(), gradient, autocast=False)
        half = functools.partial(self._compute, module, inputs, gradient, autocast=True)
        seconds, expected, found = self._times(exact, half)
        errors = {name: _error(expected[name], found[name]) for name in expected}
        return Measured(self.layer, errors, seconds)

    def _module(self) -> nn.Module:
        """Return a copy of the layer with random weights that half precision can hold."""
        module = copy.deepcopy(self._original).to(self.device)
        scale = math.prod(self.layer.weight[1:]) ** -0.5
        rng = torch.Generator(self.device).manual_seed(0)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0, scale, generator=rng)
                parameter.copy_(parameter.to(self.dtype))
        return module

    def _random(self, shape: Sequence[int], rng: torch.Generator) -> Tensor:
        numbers = torch.randn(*shape, generator=rng, device=self.device)
        layout = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
        return numbers.to(self.dtype, memory_format=layout)

    def _compute(
        self, module: nn.Module, inputs: Tensor, gradient: Tensor, *, autocast: bool
    ) -> dict[str, Tensor]:
        """Return the output and the gradients by name."""
        wanted: list[Tensor] = []
        if self.layer.input_gradient:
            wanted.append(inputs := inputs.detach().requires_grad_())
        if self.layer.weight_gradient:
            wanted.append(module.get_parameter("weight"))
        with torch.set_grad_enabled(bool(wanted)):
            with torch.autocast(self.device.type, self.dtype, enabled=autocast):
                output = module(inputs)
            gradients = torch.autograd.grad(output, wanted, gradient.to(output.dtype)) if wanted else ()
        return dict(zip(self.layer.parts(), (output.detach(), *gradients), strict=True))

    def _times(
        self, exact: Callable[[], dict[str, Tensor]], half: Callable[[], dict[str, Tensor]]
    ) -> tuple[tuple[float, float], dict[str, Tensor], dict[str, Tensor]]:
        """Return the least seconds of both, in turn, and their last results."""
        times: tuple[list[float], list[float]] = ([], [])
        least, most = ROUNDS
        while len(times[0]) < least or (len(times[0]) < most and sum(times[0] + times[1]) < ROUND_SECONDS):
            results = []
            for compute, seconds in zip((exact, half), times, strict=True):
                synchronize(self.device)
                begin = time.perf_counter()
                results.append(compute())
                synchronize(self.device)
                seconds.append(time.perf_counter() - begin)
        return (min(times[0]), min(times[1])), results[0], results[1]


def _error(expected: Tensor, found: Tensor) -> float:
    """Return the relative L2 error, which need not be finite."""
    return float((found.float() - expected).norm() / expected.norm())
