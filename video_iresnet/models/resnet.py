"""The one network class, and the named architectures as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import BasicBlock, BlockSpec, Bottleneck, Layers, Position, ResidualBlock


class Architecture(NamedTuple):
    """The two ideas of the paper, each on or off."""

    stage_blocks: bool
    improved_shortcut: bool


ARCHITECTURES = {
    "resnet": Architecture(stage_blocks=False, improved_shortcut=False),
    "iresnet": Architecture(stage_blocks=True, improved_shortcut=True),
}

DEPTHS: dict[int, tuple[type[ResidualBlock], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """(B, 3, T, H, W) normalised clips -> (B, num_classes) logits; with `dims` 2, (B, 3, H, W) images.

    Any size works: the head averages over all positions. `temporal_kernels` holds, for each stage, the temporal kernel of its 3x3 convolutions.
    With the improved shortcut there is no stem max pool: the pool of stage 1's shortcut does its work.
    """

    def __init__(
        self,
        architecture: Architecture,
        block: type[ResidualBlock],
        blocks_per_stage: Sequence[int],
        *,
        dims: int,
        num_classes: int,
        width: int,
        temporal_kernels: Sequence[int],
        temporal_strides: Sequence[int],
        dropout: float,
        rectify_identity: bool,
        zero_init_residual: bool,
    ) -> None:
        super().__init__()
        layers = Layers(dims)
        self.conv1 = layers.conv(3, width, (5 if dims == 3 else 1, 7, 7), (1, 2, 2))
        self.bn1 = layers.norm(width)
        self.maxpool = nn.Identity() if architecture.improved_shortcut else layers.max_pool((1, 3, 3), (1, 2, 2))

        stages = []
        channels = width
        for s, depth in enumerate(blocks_per_stage):
            spatial = 2 if s > 0 or architecture.improved_shortcut else 1
            stage = nn.Sequential()
            for i in range(depth):
                spec = BlockSpec(
                    inputs=channels,
                    planes=width * 2**s,
                    stride=(temporal_strides[s], spatial, spatial) if i == 0 else (1, 1, 1),
                    temporal_kernel=temporal_kernels[s],
                    position=Position.in_stage(i, depth) if architecture.stage_blocks else Position.PLAIN,
                    improved_shortcut=architecture.improved_shortcut,
                    rectify_identity=rectify_identity,
                )
                stage.append(block(layers, spec))
                channels = spec.planes * block.expansion
            stages.append(stage)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self._init_weights(zero_init_residual)

    def _init_weights(self, zero_init_residual: bool) -> None:
        """He et al.'s normal initialisation with fan-out, as in the released code; BN starts at scale 1 and shift 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, ResidualBlock):
                    module.zero_init()

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = x.flatten(2).mean(2)
        return self.fc(self.dropout(x))  # type: ignore[no-any-return]


def create_model(
    arch: str,
    depth: int,
    *,
    dims: int = 3,
    num_classes: int = 400,
    width: int = 64,
    temporal_kernels: Sequence[int] = (3, 3, 3, 3),
    temporal_strides: Sequence[int] = (1, 1, 2, 2),
    dropout: float = 0.0,
    rectify_identity: bool = True,
    zero_init_residual: bool = False,
) -> ResNet:
    """A network that maps (B, 3, T, H, W) clips (or, with `dims` 2, (B, 3, H, W) images) to (B, num_classes) logits.

    `arch`: resnet (the ordinary network) or iresnet. `width`: channels of the stem; 64 in the literature. The temporal options apply to video
    alone. `rectify_identity`: True computes what the released iResNet code computes, False what the paper draws.

    Raises ValueError where a name or a number is not one of the possible ones.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}; expected one of {', '.join(ARCHITECTURES)}")
    if depth not in DEPTHS:
        raise ValueError(f"unknown depth {depth}; expected one of {', '.join(map(str, DEPTHS))}")
    if dims not in (2, 3):
        raise ValueError(f"dims is {dims}; expected 2 (images) or 3 (video)")
    for name, values in (("temporal_kernels", temporal_kernels), ("temporal_strides", temporal_strides)):
        if len(values) != 4 or min(values) < 1:
            raise ValueError(f"{name} is {list(values)}; expected four positive numbers, one for each stage")
    if not all(kernel % 2 for kernel in temporal_kernels):
        raise ValueError(f"temporal_kernels is {list(temporal_kernels)}; expected odd numbers, which keep frames centred")
    if dims == 2:
        temporal_kernels = temporal_strides = (1, 1, 1, 1)
    block, blocks_per_stage = DEPTHS[depth]
    return ResNet(
        ARCHITECTURES[arch],
        block,
        blocks_per_stage,
        dims=dims,
        num_classes=num_classes,
        width=width,
        temporal_kernels=temporal_kernels,
        temporal_strides=temporal_strides,
        dropout=dropout,
        rectify_identity=rectify_identity,
        zero_init_residual=zero_init_residual,
    )
