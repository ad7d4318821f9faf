"""The network class; named architectures, depths and temporal patterns as values."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .blocks import ONE, BasicBlock, BlockSpec, Bottleneck, Layers, Position, ResidualBlock, Size


class Architecture(NamedTuple):
    """The ideas of the paper: stage-wise blocks, the improved shortcut, and grouped 3x3 convolutions with the
    most channels.

    `groups`: of the 3x3 convolutions in each stage; blocks then have 4 times the inner channels and output
    half of them.
    """

    stage_blocks: bool
    improved_shortcut: bool
    groups: tuple[int, int, int, int] | None = None


RESGROUP, RESGROUPFIX = (8, 16, 32, 64), (64, 64, 64, 64)
ARCHITECTURES = {
    "resnet": Architecture(stage_blocks=False, improved_shortcut=False),
    "resstage": Architecture(stage_blocks=True, improved_shortcut=False),
    "iresnet": Architecture(stage_blocks=True, improved_shortcut=True),
    "resgroup": Architecture(stage_blocks=False, improved_shortcut=False, groups=RESGROUP),
    "resgroupfix": Architecture(stage_blocks=False, improved_shortcut=False, groups=RESGROUPFIX),
    "iresgroup": Architecture(stage_blocks=True, improved_shortcut=True, groups=RESGROUP),
    "iresgroupfix": Architecture(stage_blocks=True, improved_shortcut=True, groups=RESGROUPFIX),
}

DEPTHS: dict[int, tuple[type[ResidualBlock], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
    302: (Bottleneck, (4, 34, 58, 4)),
    404: (Bottleneck, (4, 46, 80, 4)),
    1001: (Bottleneck, (4, 155, 170, 4)),
}
GROUPED_DEPTHS = (50, 101, 152)


class TemporalPattern(NamedTuple):
    """The temporal structure of a video network.

    `kernels`: for each stage, the temporal kernels that its blocks cycle through. `on_first_conv`: they are
    those of each block's first convolution (the 1x1 of a bottleneck), as in I3D and Slow; otherwise of its
    3x3 convolutions. `strides`: temporal strides of the stages. `pool`: size and stride of the temporal max
    pool after the first stage.
    """

    kernels: tuple[tuple[int, ...], ...]
    on_first_conv: bool
    stem_kernel: int
    strides: tuple[int, ...]
    pool: int


# i3d, slow, c2d: Wang et al., Non-local Neural Networks, and Feichtenhofer et al., SlowFast, as PySlowFast
# has them.
TEMPORAL_PATTERNS = {
    "full": TemporalPattern(((3,), (3,), (3,), (3,)), False, 5, (1, 1, 2, 2), 1),
    "i3d": TemporalPattern(((3,), (3, 1), (3, 1), (1, 3)), True, 5, (1, 1, 1, 1), 2),
    "slow": TemporalPattern(((1,), (1,), (3,), (3,)), True, 1, (1, 1, 1, 1), 1),
    "c2d": TemporalPattern(((1,), (1,), (1,), (1,)), True, 1, (1, 1, 1, 1), 2),
}
TemporalKernels = str | Sequence[int | Sequence[int]]


class Stem(NamedTuple):
    channels: int
    kernel: Size
    stride: Size
    pool: bool


class Plan(NamedTuple):
    """The complete configuration of a network."""

    dims: int
    stem: Stem
    block: type[ResidualBlock]
    stages: tuple[tuple[BlockSpec, ...], ...]
    temporal_pool: int
    num_classes: int
    dropout: float
    head_window: Size | None

    @property
    def strides(self) -> list[Size]:
        """Return the total strides (t, h, w) after the stem and after each stage."""
        pool = (1, 2, 2) if self.stem.pool else ONE
        parts = [[self.stem.stride, pool], *([spec.stride for spec in specs] for specs in self.stages)]
        parts[2].append((self.temporal_pool, 1, 1))  # between stages 1 and 2
        done: list[Size] = []
        totals = []
        for part in parts:
            done += part
            time, height, width = (math.prod(along) for along in zip(*done, strict=True))
            totals.append((time, height, width))
        return totals

    @property
    def stride(self) -> Size:
        """Return the total stride (t, h, w) of the last features."""
        return self.strides[-1]

    def trained_on(self, clip: Size) -> Plan:
        """Return the plan whose head classifies every window as large as the features of a (t, h, w) clip."""
        time, height, width = (-(-size // stride) for size, stride in zip(clip, self.stride, strict=True))
        return self._replace(head_window=(time, height, width))

    def without_time(self) -> Plan:
        """Return the plan of the image network that computes the same for each frame."""
        stem = self.stem._replace(kernel=(1, *self.stem.kernel[1:]), stride=(1, *self.stem.stride[1:]))
        stages = tuple(tuple(spec.without_time() for spec in stage) for stage in self.stages)
        window = self.head_window and (1, *self.head_window[1:])
        return self._replace(dims=2, stem=stem, stages=stages, temporal_pool=1, head_window=window)


class Stage(nn.Sequential):
    """Residual blocks in sequence.

    `checkpoint_activations` keeps only the inputs of blocks for the backward pass, which recomputes the rest.
    """

    def __init__(self, *blocks: nn.Module, checkpoint_activations: bool) -> None:
        super().__init__(*blocks)
        self.checkpoint_activations = checkpoint_activations

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            if self.checkpoint_activations and self.training:
                contexts = functools.partial(_first_and_second_pass, block)
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
            else:
                x = block(x)
        return x


class ResNet(nn.Module):
    """(B, 3, T, H, W) normalized clips -> (B, num_classes) logits. An image network takes (B, 3, H, W)
    images, or clips of one frame, whose features then have an axis of time too.

    Any size works. The head averages the features over all positions. With a `head_window` in the plan, it
    classifies the average of every window of that size and averages the probabilities, so that larger crops
    are processed as in training.
    """

    def __init__(
        self, plan: Plan, *, zero_init_residual: bool = False, checkpoint_activations: bool = False
    ) -> None:
        super().__init__()
        layers = Layers(plan.dims)
        self.plan = plan
        self.conv1 = layers.conv(3, plan.stem.channels, plan.stem.kernel, plan.stem.stride)
        self.bn1 = layers.norm(plan.stem.channels)
        self.maxpool = layers.max_pool((1, 3, 3), (1, 2, 2)) if plan.stem.pool else nn.Identity()
        for number, specs in enumerate(plan.stages, start=1):
            self.add_module(
                f"layer{number}",
                Stage(
                    *(plan.block(layers, spec) for spec in specs),
                    checkpoint_activations=checkpoint_activations,
                ),
            )
        size = plan.temporal_pool
        self.temporal_pool = nn.MaxPool3d((size, 1, 1), (size, 1, 1)) if size > 1 else nn.Identity()
        self.dropout = nn.Dropout(plan.dropout)
        self.fc = nn.Linear(plan.stages[-1][-1].outputs, plan.num_classes)
        self._init_weights(zero_init_residual)

    def _init_weights(self, zero_init_residual: bool) -> None:
        """Initialize with He et al.'s normal distribution (fan-out), as in the released code; BN with scale 1
        and shift 0.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, ResidualBlock):
                    module.zero_init()

    @property
    def stages(self) -> list[Stage]:
        return [module for module in self.children() if isinstance(module, Stage)]

    @property
    def stage_names(self) -> list[str]:
        """Return the names of what `features_of` can compute: stem, stage1, stage2, ..."""
        return ["stem", *(f"stage{number}" for number in range(1, len(self.plan.stages) + 1))]

    def features(self, x: Tensor) -> list[Tensor]:
        """(B, 3, T, H, W) -> the outputs of the stages, (B, C, t, h, w) each, finest first."""
        is_clip, x = x.dim() == 5, self._stem(x)
        maps: list[Tensor] = []
        for number in range(len(self.stages)):
            x = self._between(number, number + 1, x)
            maps.append(_as_clip(x) if is_clip else x)
        return maps

    def features_of(self, stage: str, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> the output (B, C, t, h, w) of one of `stage_names`, computing no more
        than that. Raises ValueError for another name.
        """
        maps = self._between(0, self._number(stage), self._stem(x))
        return _as_clip(maps) if x.dim() == 5 else maps

    def logits_from(self, stage: str, x: Tensor) -> Tensor:
        """The output (B, C, t, h, w) of one of `stage_names` -> (B, num_classes) logits."""
        return self._head(self._between(self._number(stage), len(self.stages), self._picture(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self._head(self.features(x)[-1])

    def _number(self, stage: str) -> int:
        names = self.stage_names
        _check(stage in names, f"unknown stage {stage!r}; expected one of {', '.join(names)}")
        return names.index(stage)

    def _between(self, done: int, end: int, x: Tensor) -> Tensor:
        """Apply the stages after the first `done`, to stage `end`; the stem is number 0."""
        for number, stage in enumerate(self.stages[done:end], start=done):
            x = stage(self.temporal_pool(x) if number == 1 else x)
        return x

    def _picture(self, x: Tensor) -> Tensor:
        """Remove the axis of time, of one frame, of what an image network gets. Raises ValueError."""
        if self.plan.dims == 3 or x.dim() == 4:
            return x
        _check(x.shape[2] == 1, f"an image network got clips of {x.shape[2]} frames; expected one")
        return x[:, :, 0]

    def _stem(self, x: Tensor) -> Tensor:
        return self.maxpool(F.relu(self.bn1(self.conv1(self._picture(x)))))  # type: ignore[no-any-return]

    def _head(self, x: Tensor) -> Tensor:
        """(B, C, t, h, w) features -> (B, num_classes) logits; with a window, the logarithms of mean
        probabilities.
        """
        x = self._picture(x)
        if self.plan.head_window is None:
            return self.fc(self.dropout(x.flatten(2).mean(2)))  # type: ignore[no-any-return]
        window = [
            min(sizes)
            for sizes in zip(Layers(self.plan.dims).own(self.plan.head_window), x.shape[2:], strict=True)
        ]
        average = F.avg_pool2d if self.plan.dims == 2 else F.avg_pool3d
        logits = self.fc(self.dropout(average(x, window, stride=1).flatten(2).transpose(1, 2)))
        if logits.shape[1] == 1:
            return logits[:, 0]  # type: ignore[no-any-return]
        return logits.log_softmax(2).logsumexp(1) - math.log(logits.shape[1])  # type: ignore[no-any-return]


def _as_clip(maps: Tensor) -> Tensor:
    """(B, C, h, w) features of an image network -> (B, C, 1, h, w); others as they are."""
    return maps[:, :, None] if maps.dim() == 4 else maps


def _first_and_second_pass(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Return the contexts of a checkpointed block's two passes: the second must not update the BN statistics
    again.
    """
    return contextlib.nullcontext(), _statistics_set_aside(block)


@contextlib.contextmanager
def _statistics_set_aside(block: nn.Module) -> Iterator[None]:
    """Let the normalizations of a block update copies of their statistics."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update(
            {name: buffer.clone() for name, buffer in norm._buffers.items() if buffer is not None}
        )
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


def create_model(
    arch: str,
    depth: int,
    *,
    dims: int = 3,
    num_classes: int = 400,
    width: int = 64,
    temporal_kernels: TemporalKernels = "full",
    temporal_strides: Sequence[int] | None = None,
    temporal_pool: int | None = None,
    stem_temporal_kernel: int | None = None,
    stem_temporal_stride: int = 1,
    stem_pool: bool = True,
    shortcut_temporal_kernel: int | None = None,
    dropout: float = 0.0,
    head_window: Size | None = None,
    rectify_identity: bool = True,
    zero_init_residual: bool = False,
    checkpoint_activations: bool = False,
) -> ResNet:
    """Create a network (B, 3, T, H, W) clips -> (B, num_classes) logits, or with `dims` 2 for (B, 3, H, W)
    images.

    `arch`: one of ARCHITECTURES. `depth`: one of DEPTHS; 50, 101 or 152 for grouped architectures. `width`:
    channels of the stem, 64 in the literature. `rectify_identity`: True for the released iResNet code, False
    for the paper's drawing. `stem_pool` False removes the max pool of the stem; iResNets have none, as their
    first stage has stride 2. `head_window` (t, h, w): see ResNet.

    For video: `temporal_kernels` is one of TEMPORAL_PATTERNS, or for each stage the temporal kernel of its
    3x3 convolutions, as a number or as numbers that its blocks cycle through. If `temporal_strides`,
    `temporal_pool` (after the first stage; 1: none) or `stem_temporal_kernel` is None, it is the pattern's
    (for explicit kernels, that of "full"). `shortcut_temporal_kernel`: of the improved shortcut's pool; None:
    that of the block's 3x3 convolution. All of these are ignored for images.

    Raises ValueError for an unknown name or an impossible number.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}; expected one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[arch]
    depths = DEPTHS if architecture.groups is None else GROUPED_DEPTHS
    if depth not in depths:
        raise ValueError(f"unknown depth {depth} of {arch}; expected one of {', '.join(map(str, depths))}")
    pattern = temporal_pattern(temporal_kernels, temporal_strides, temporal_pool, stem_temporal_kernel)
    for name, value in (("temporal_pool", pattern.pool), ("stem_temporal_stride", stem_temporal_stride)):
        _check(value >= 1, f"{name} is {value}; expected 1 or more")
    _check_odd("shortcut_temporal_kernel", [shortcut_temporal_kernel or 1])
    stem = Stem(
        width,
        (pattern.stem_kernel, 7, 7),
        (stem_temporal_stride, 2, 2),
        stem_pool and not architecture.improved_shortcut,
    )
    first_stride = 2 if architecture.improved_shortcut else 1
    block, blocks_per_stage = DEPTHS[depth]
    stages = _plan_stages(
        architecture,
        block,
        blocks_per_stage,
        (first_stride, 2, 2, 2),
        width,
        pattern,
        shortcut_temporal_kernel,
        rectify_identity,
    )
    plan = Plan(3, stem, block, stages, pattern.pool, num_classes, dropout, head_window)
    return ResNet(
        _of_dims(plan, dims),
        zero_init_residual=zero_init_residual,
        checkpoint_activations=checkpoint_activations,
    )


def create_cifar_model(
    arch: str,
    depth: int,
    *,
    dims: int = 2,
    num_classes: int = 10,
    width: int = 16,
    dropout: float = 0.0,
    rectify_identity: bool = True,
    zero_init_residual: bool = False,
    checkpoint_activations: bool = False,
) -> ResNet:
    """Create a network of three stages for small images (B, 3, H, W), or with `dims` 3 for small clips.

    `arch`: resnet, resstage or iresnet. `depth`: 9n+2, with n bottlenecks per stage, or 3002 (333, 334 and
    333). The stem is a 3x3 convolution; spatial strides are 1, 2, 2 (He et al., arXiv 1603.05027; depths of
    Duta et al.). Raises ValueError.
    """
    possible = [name for name, architecture in ARCHITECTURES.items() if architecture.groups is None]
    _check(
        arch in possible,
        f"unknown architecture {arch!r} for small images; expected one of {', '.join(possible)}",
    )
    n, rest = divmod(depth - 2, 9)
    _check(
        depth == 3002 or (n >= 2 and rest == 0),
        f"unknown depth {depth} for small images; expected 9n+2 of at least 20, or 3002",
    )
    blocks_per_stage = (333, 334, 333) if depth == 3002 else (n, n, n)
    pattern = TemporalPattern(((3,), (3,), (3,)), False, 3, (1, 1, 1), 1)
    stages = _plan_stages(
        ARCHITECTURES[arch], Bottleneck, blocks_per_stage, (1, 2, 2), width, pattern, None, rectify_identity
    )
    plan = Plan(3, Stem(width, (3, 3, 3), ONE, False), Bottleneck, stages, 1, num_classes, dropout, None)
    return ResNet(
        _of_dims(plan, dims),
        zero_init_residual=zero_init_residual,
        checkpoint_activations=checkpoint_activations,
    )


def temporal_pattern(
    kernels: TemporalKernels,
    strides: Sequence[int] | None = None,
    pool: int | None = None,
    stem_kernel: int | None = None,
) -> TemporalPattern:
    """Return the pattern with that name or those kernels, with arguments other than None replaced. Raises
    ValueError.
    """
    if isinstance(kernels, str):
        _check(
            kernels in TEMPORAL_PATTERNS,
            f"temporal_kernels is {kernels!r}; expected {', '.join(TEMPORAL_PATTERNS)}, or numbers for four "
            "stages",
        )
        pattern = TEMPORAL_PATTERNS[kernels]
    else:
        _check(
            len(kernels) == 4,
            f"temporal_kernels is {list(kernels)}; expected {', '.join(TEMPORAL_PATTERNS)}, or numbers for "
            "four stages",
        )
        each = tuple(tuple(kernel) if isinstance(kernel, Sequence) else (kernel,) for kernel in kernels)
        _check_odd("temporal_kernels", [kernel for stage in each for kernel in stage or (0,)])
        pattern = TEMPORAL_PATTERNS["full"]._replace(kernels=each)
    if strides is not None:
        _check(
            len(strides) == 4 and min(strides) >= 1,
            f"temporal_strides is {list(strides)}; expected four positive numbers, one for each stage",
        )
        pattern = pattern._replace(strides=tuple(strides))
    if stem_kernel is not None:
        _check_odd("stem_temporal_kernel", [stem_kernel])
        pattern = pattern._replace(stem_kernel=stem_kernel)
    return pattern if pool is None else pattern._replace(pool=pool)


def _plan_stages(
    architecture: Architecture,
    block: type[ResidualBlock],
    blocks_per_stage: Sequence[int],
    spatial_strides: Sequence[int],
    width: int,
    pattern: TemporalPattern,
    shortcut_temporal_kernel: int | None,
    rectify_identity: bool,
) -> tuple[tuple[BlockSpec, ...], ...]:
    stages = []
    channels = width
    for s, depth in enumerate(blocks_per_stage):
        planes, groups = width * 2**s, 1
        outputs = planes * 4 if block is Bottleneck else planes
        if architecture.groups is not None:
            planes, outputs, groups = planes * 4, planes * 2, architecture.groups[s]
            _check(
                planes % groups == 0,
                f"width {width} gives {planes} channels in stage {s + 1}, which {groups} groups do not "
                "divide",
            )
        specs = []
        for i in range(depth):
            kernel = pattern.kernels[s][i % len(pattern.kernels[s])]
            first_and_second = (
                kernel if pattern.on_first_conv or block.first_conv_is_spatial else 1,
                1 if pattern.on_first_conv else kernel,
            )
            pool_kernel = (
                shortcut_temporal_kernel or first_and_second[0 if block.first_conv_is_spatial else 1]
            )
            spec = BlockSpec(
                inputs=channels,
                planes=planes,
                outputs=outputs,
                groups=groups,
                stride=(pattern.strides[s], spatial_strides[s], spatial_strides[s]) if i == 0 else ONE,
                temporal_kernels=first_and_second,
                position=Position.in_stage(i, depth) if architecture.stage_blocks else Position.PLAIN,
                shortcut_pool=(pool_kernel, 3, 3) if architecture.improved_shortcut else None,
                rectify_identity=rectify_identity,
            )
            specs.append(spec)
            channels = outputs
        stages.append(tuple(specs))
    return tuple(stages)


def _of_dims(plan: Plan, dims: int) -> Plan:
    _check(dims in (2, 3), f"dims is {dims}; expected 2 (images) or 3 (video)")
    return plan if dims == 3 else plan.without_time()


def _check_odd(name: str, kernels: Sequence[int]) -> None:
    fine = all(isinstance(kernel, int) and kernel >= 1 and kernel % 2 for kernel in kernels)
    _check(fine, f"{name} is {list(kernels)}; expected odd numbers, which keep frames centred")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
