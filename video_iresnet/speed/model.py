"""Ways to compute a step of training and a view of testing, from the ordinary one to the fastest."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import build
from ..config import Config
from ..data.loader import ClipBatch
from ..engine.complexity import complexity
from ..engine.step import Step
from ..runtime.devices import allow_tf32
from ..runtime.distributed import Processes
from .timing import Call

BATCHES = 4  # different random batches, in turn


def random_batches(cfg: Config, clips: int) -> list[ClipBatch]:
    """Return batches of uint8 clips as the loader makes them, with random pixels and labels."""
    source = torch.Generator().manual_seed(0)
    size = cfg.DATA.TRAIN_CROP_SIZE
    shape = (clips, 3, cfg.DATA.NUM_FRAMES, size, size)
    batches = []
    for _ in range(BATCHES):
        pixels = torch.randint(256, shape, generator=source, dtype=torch.uint8)
        labels = torch.randint(cfg.MODEL.NUM_CLASSES, (clips,), generator=source)
        batches.append(ClipBatch(pixels.to(memory_format=torch.channels_last_3d), labels, []))
    return batches


def ordinary_loop(
    network: nn.Module, cfg: Config, batches: Iterable[ClipBatch], device: torch.device
) -> Call:
    """Return a training step as most projects write it: eager, float32, contiguous, normalized on the device,
    and with the loss read at each step.
    """
    network = network.to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    normalize = build.build_normalize(cfg, device)
    endless = itertools.cycle(batches)

    def call() -> float:
        batch = next(endless)
        clips = normalize(batch.clips.to(device)).contiguous()
        loss = nn.functional.cross_entropy(network(clips), batch.labels.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return call


@dataclass(frozen=True)
class Variant:
    """A way to compute the training step of a config."""

    tf32: bool = False
    half: bool = False
    channels_last: bool = False
    compile: bool = False

    def step(self, cfg: Config, processes: Processes) -> Step:
        """Return the step."""
        cfg = cfg.clone()
        cfg.TRAIN.MIXED_PRECISION, cfg.TRAIN.COMPILE, cfg.TRAIN.ACCUMULATION = self.half, self.compile, 1
        network = build.build_model(cfg).to(processes.device)
        if self.channels_last:
            network = network.to(memory_format=build.channels_last(cfg))
        build.check_precision(cfg, network, processes)
        step = build.build_step(cfg, network, processes)
        step.train()
        return step

    def training(self, cfg: Config, batches: Iterable[ClipBatch], processes: Processes) -> Call:
        """Return the training step of a config as a call."""
        step = self.step(cfg, processes)
        endless = enumerate(itertools.cycle(batches))
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format

        def call() -> Any:
            done, batch = next(endless)
            allow_tf32(self.tf32)
            return step(batch._replace(clips=batch.clips.contiguous(memory_format=layout)), done, 0.5)

        return call


# The steps from plain to fast, each with those before it. TF32 is of GPUs alone.
LADDER = {
    "this step, eager, float32": Variant(),
    "+ TF32": Variant(tf32=True),
    "+ {half}": Variant(tf32=True, half=True),
    "+ {layout}": Variant(tf32=True, half=True, channels_last=True),
    "+ compile": Variant(tf32=True, half=True, channels_last=True, compile=True),
    "float32, {layout}": Variant(tf32=True, channels_last=True),
    "float32, {layout}, compile": Variant(tf32=True, channels_last=True, compile=True),
}


class Way(NamedTuple):
    """A way to compute: what makes its call, whether it computes in half precision, and the floating-point
    operations per clip.
    """

    make: Callable[[], Call]
    half: bool
    operations: int


def training_ways(
    cfg: Config, clips: int, processes: Processes, half: bool, compiled: bool
) -> dict[str, Way]:
    """Return the ways to train a config, from an ordinary loop to the fastest, and a network of torchvision
    beside them. `half`: with half precision; `compiled`: with torch.compile.
    """
    device, batches = processes.device, random_batches(cfg, clips)
    size = (cfg.DATA.NUM_FRAMES, *[cfg.DATA.TRAIN_CROP_SIZE] * 2)
    make_other, other_name = (resnet18, "resnet18") if cfg.MODEL.DIMS == 2 else (r3d_18, "r3d_18")
    own, other = (operations(make(cfg), size) for make in (build.build_model, make_other))
    layout = str(build.channels_last(cfg)).removeprefix("torch.")
    training = 3  # a backward pass costs two forward passes

    def variant_of(variant: Variant) -> Way:
        return Way(lambda: variant.training(cfg, batches, processes), variant.half, training * own)

    def ordinary(make: Callable[[Config], nn.Module], work: int) -> Way:
        return Way(lambda: ordinary_loop(make(cfg), cfg, batches, device), False, training * work)

    ways = {"ordinary loop, float32": ordinary(build.build_model, own)}
    for name, variant in LADDER.items():
        possible = (half or not variant.half) and (compiled or not variant.compile)
        if possible and (device.type == "cuda" or name != "+ TF32"):
            ways[name.format(half=cfg.TRAIN.HALF_DTYPE, layout=layout)] = variant_of(variant)
    return ways | {f"torchvision's {other_name}, ordinary loop": ordinary(make_other, other)}


def r3d_18(cfg: Config) -> nn.Module:
    """Return torchvision's video network, untrained."""
    from torchvision.models.video import r3d_18

    network: nn.Module = r3d_18(num_classes=cfg.MODEL.NUM_CLASSES)
    return network


def resnet18(cfg: Config) -> nn.Module:
    """Return torchvision's image network, untrained, for clips of one frame."""
    from torchvision.models import resnet18

    return nn.Sequential(nn.Flatten(1, 2), resnet18(num_classes=cfg.MODEL.NUM_CLASSES))


def operations(network: nn.Module, size: tuple[int, ...]) -> int:
    """Return the floating-point operations of one clip in a forward pass, two for each multiply-add."""
    return 2 * complexity(network.to("meta"), size).multiply_adds


def testing_ways(cfg: Config, views: int, processes: Processes, half: bool, compiled: bool) -> dict[str, Way]:
    """Return the ways to compute the logits of some test views."""
    device, size = processes.device, cfg.DATA.TEST_CROP_SIZE
    shape = (cfg.DATA.NUM_FRAMES, size, size)
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (views, 3, *shape), generator=source, dtype=torch.uint8)
    clips = pixels.to(device, memory_format=torch.channels_last_3d)
    normalize = build.build_normalize(cfg, device)
    work = operations(build.build_model(cfg), shape)

    def contiguous() -> Call:
        network = build.build_model(cfg).to(device).eval()
        return _forward(lambda: network(normalize(clips).contiguous()))

    def tested(half: bool = False, fold: bool = False, compile: bool = False) -> Way:
        def make() -> Call:
            keys = cfg.clone()
            keys.TEST.BATCH_SIZE = views
            keys.TEST.MIXED_PRECISION, keys.TEST.FOLD_BN, keys.TEST.COMPILE = half, fold, compile
            ready = build.build_tested(keys, build.build_network(keys, device).eval(), processes)

            def logits() -> Tensor:
                with ready.precision.autocast():
                    return ready.network(normalize(clips))  # type: ignore[no-any-return]

            return _forward(logits)

        return Way(make, half, work)

    ways = {
        "float32, contiguous": Way(contiguous, False, work),
        "float32": tested(),
        "float32, folded": tested(fold=True),
    }
    if compiled:
        ways["float32, folded, compiled"] = tested(fold=True, compile=True)
    if half:
        ways[cfg.TRAIN.HALF_DTYPE] = tested(half=True)
        ways[f"{cfg.TRAIN.HALF_DTYPE}, folded"] = tested(half=True, fold=True)
    if half and compiled:
        ways[f"{cfg.TRAIN.HALF_DTYPE}, folded, compiled"] = tested(half=True, fold=True, compile=True)
    return ways


def _forward(logits: Callable[[], Tensor]) -> Call:
    """Return the call in inference mode."""

    @torch.inference_mode()
    def call() -> Tensor:
        return logits()

    return call
