"""Residual blocks and shortcuts for images (dims=2) and video (dims=3).

Sizes are ordered (t, h, w) everywhere; an image network has a temporal size of one, which is dropped here.
Sources: He et al., arXiv 1512.03385 (plain blocks); Duta et al., arXiv 2004.04989 and its released 2D code
(stage blocks, improved shortcut, grouped bottlenecks).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

Size = tuple[int, int, int]
ONE: Size = (1, 1, 1)


class Layers(NamedTuple):
    """Makes the layers of networks for images (`dims` 2) or video (`dims` 3) from (t, h, w) sizes."""

    dims: int

    def own(self, size: Size) -> tuple[int, ...]:
        """Drop the temporal size for images."""
        if self.dims == 2 and size[0] != 1:
            raise ValueError(f"temporal size {size[0]} in an image network, where only 1 is possible")
        return size[3 - self.dims :]

    def _padding(self, kernel: Size) -> tuple[int, ...]:
        return tuple(k // 2 for k in self.own(kernel))

    def conv(
        self, inputs: int, outputs: int, kernel: Size = ONE, stride: Size = ONE, groups: int = 1
    ) -> nn.Module:
        """Return a convolution without bias, padded so that only `stride` changes the size."""
        layer: Callable[..., nn.Module] = nn.Conv2d if self.dims == 2 else nn.Conv3d
        return layer(
            inputs,
            outputs,
            self.own(kernel),
            self.own(stride),
            self._padding(kernel),
            groups=groups,
            bias=False,
        )

    def norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if self.dims == 2 else nn.BatchNorm3d(channels)

    def max_pool(self, kernel: Size, stride: Size) -> nn.Module:
        layer: Callable[..., nn.Module] = nn.MaxPool2d if self.dims == 2 else nn.MaxPool3d
        return layer(self.own(kernel), self.own(stride), self._padding(kernel))


class Position(enum.Enum):
    """The position of a block, which determines its normalizations and ReLUs, as in the authors' released 2D
    code.
    """

    PLAIN = "plain"  # the ordinary residual block, at any position
    START = "start"  # first of a stage
    FIRST_MIDDLE = "first middle"  # second of a stage
    MIDDLE = "middle"
    END = "end"  # last of a stage of three or more
    SECOND_AND_END = "second and end"  # last of a stage of two

    @staticmethod
    def in_stage(index: int, depth: int) -> Position:
        """Return the position of block `index` in a stage of `depth` blocks, by the rule of ResStage and
        iResNet.
        """
        if depth < 2:
            raise ValueError(f"a stage of {depth} block, but a start and an end block make two")
        if index == 0:
            return Position.START
        if index == depth - 1:
            return Position.SECOND_AND_END if depth == 2 else Position.END
        return Position.FIRST_MIDDLE if index == 1 else Position.MIDDLE

    @property
    def norm_first(self) -> bool:
        return self in (Position.MIDDLE, Position.END)

    @property
    def relu_first(self) -> bool:
        return self not in (Position.PLAIN, Position.START)

    @property
    def norm_before_addition(self) -> bool:
        return self in (Position.PLAIN, Position.START)

    @property
    def norm_after_addition(self) -> bool:
        return self in (Position.END, Position.SECOND_AND_END)

    @property
    def relu_last(self) -> bool:
        return self.norm_after_addition or self is Position.PLAIN


class BlockSpec(NamedTuple):
    """The configuration of a block.

    `planes`: channels between its convolutions. `stride`: that of its first 3x3 convolution.
    `temporal_kernels`: those of its first two convolutions. `shortcut_pool`: the kernel of the max pool in
    the improved shortcut; None for the ordinary shortcut.
    """

    inputs: int
    planes: int
    outputs: int
    groups: int
    stride: Size
    temporal_kernels: tuple[int, int]
    position: Position
    shortcut_pool: Size | None
    rectify_identity: bool

    def without_time(self) -> BlockSpec:
        """Return the same block for images."""
        pool = self.shortcut_pool and (1, *self.shortcut_pool[1:])
        return self._replace(stride=(1, *self.stride[1:]), temporal_kernels=(1, 1), shortcut_pool=pool)


def shortcut(layers: Layers, spec: BlockSpec) -> nn.Module:
    """Return the projection shortcut of a block, (B, inputs, ...) -> (B, outputs, ...).

    Ordinary: a 1x1 convolution with the block's stride, and BN. Improved: if the stride is not 1, a max pool
    with that stride and the kernel of the block's 3x3 convolution, which sees every activation; if the
    channels change, a 1x1 convolution with stride 1, and BN.
    """
    strided = spec.stride != ONE
    if not strided and spec.inputs == spec.outputs:
        return nn.Identity()
    if spec.shortcut_pool is None:
        return nn.Sequential(
            layers.conv(spec.inputs, spec.outputs, stride=spec.stride), layers.norm(spec.outputs)
        )
    modules = [layers.max_pool(spec.shortcut_pool, spec.stride)] if strided else []
    if spec.inputs != spec.outputs:
        modules += [layers.conv(spec.inputs, spec.outputs), layers.norm(spec.outputs)]
    return nn.Sequential(*modules)


class ResidualBlock(nn.Module):
    """(B, inputs, t, h, w) -> (B, outputs, t', h', w'). Base of basic blocks and bottlenecks.

    `rectify_identity`: in blocks that begin with a ReLU, the released code applies it in place and so
    rectifies the identity path too; the released weights depend on it.
    """

    first_conv_is_spatial: bool

    def __init__(self, layers: Layers, spec: BlockSpec) -> None:
        super().__init__()
        self.position = spec.position
        self.rectify_identity = spec.rectify_identity
        if spec.position.norm_first:
            self.bn0 = layers.norm(spec.inputs)
        self.downsample = shortcut(layers, spec)

    def zero_init(self) -> None:
        """Initialize the residual branch to zero: in the last BN if it belongs to the branch, or else in the
        last convolution.
        """
        raise NotImplementedError

    def branch(self, x: Tensor) -> Tensor:
        """The convolutions of the residual branch, without the last normalization."""
        raise NotImplementedError

    def last_norm(self, x: Tensor) -> Tensor:
        """The normalization after the last convolution, before or after the addition."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out = x
        if self.position.norm_first:
            out = F.relu(self.bn0(x))
        elif self.position.relu_first:
            out = F.relu(x)
            if self.rectify_identity:
                x = out
        out = self.branch(out)
        if self.position.norm_before_addition:
            out = self.last_norm(out)
        out = out + self.downsample(x)
        if self.position.norm_after_addition:
            out = self.last_norm(out)
        return F.relu(out) if self.position.relu_last else out


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions; the stride is on the first."""

    first_conv_is_spatial = True

    def __init__(self, layers: Layers, spec: BlockSpec) -> None:
        super().__init__(layers, spec)
        first, second = spec.temporal_kernels
        self.conv1 = layers.conv(spec.inputs, spec.planes, (first, 3, 3), spec.stride)
        self.bn1 = layers.norm(spec.planes)
        self.conv2 = layers.conv(spec.planes, spec.outputs, (second, 3, 3))
        if spec.position.norm_before_addition or spec.position.norm_after_addition:
            self.bn2 = layers.norm(spec.outputs)

    def zero_init(self) -> None:
        last = self.bn2 if self.position.norm_before_addition else self.conv2
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def branch(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return self.conv2(out)  # type: ignore[no-any-return]

    def last_norm(self, x: Tensor) -> Tensor:
        return self.bn2(x)  # type: ignore[no-any-return]


class Bottleneck(ResidualBlock):
    """1x1, 3x3 (grouped, where `groups` is not 1) and 1x1 convolutions; the stride is on the 3x3 one."""

    first_conv_is_spatial = False

    def __init__(self, layers: Layers, spec: BlockSpec) -> None:
        super().__init__(layers, spec)
        first, second = spec.temporal_kernels
        self.conv1 = layers.conv(spec.inputs, spec.planes, (first, 1, 1))
        self.bn1 = layers.norm(spec.planes)
        self.conv2 = layers.conv(spec.planes, spec.planes, (second, 3, 3), spec.stride, spec.groups)
        self.bn2 = layers.norm(spec.planes)
        self.conv3 = layers.conv(spec.planes, spec.outputs)
        if spec.position.norm_before_addition or spec.position.norm_after_addition:
            self.bn3 = layers.norm(spec.outputs)

    def zero_init(self) -> None:
        last = self.bn3 if self.position.norm_before_addition else self.conv3
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def branch(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.conv3(out)  # type: ignore[no-any-return]

    def last_norm(self, x: Tensor) -> Tensor:
        return self.bn3(x)  # type: ignore[no-any-return]
