"""Batch normalization folded into the convolutions before it, for testing."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .blocks import ResidualBlock

Network = TypeVar("Network", bound=nn.Module)


def fold_batch_norm(network: Network) -> Network:
    """Return a copy of a network in evaluation mode, in which each normalization that directly follows a
    convolution is part of it; in its place is the identity.

    The normalizations at the start of blocks and after the addition of the shortcut remain.
    """
    network = copy.deepcopy(network).eval()
    _fold(network, "conv1", "bn1")
    for block in network.modules():
        if isinstance(block, ResidualBlock):
            for conv, norm in _pairs(block):
                _fold(block, conv, norm)
            if isinstance(block.downsample, nn.Sequential):
                # Strided shortcuts may begin with a pool, or consist of it.
                for number, module in enumerate(block.downsample):
                    if isinstance(module, _BatchNorm):
                        _fold(block.downsample, str(number - 1), str(number))
    return network


def _pairs(block: ResidualBlock) -> list[tuple[str, str]]:
    """Return the names of the convolutions of the residual branch that a normalization follows directly."""
    convs = [name for name, module in block.named_children() if name.startswith("conv")]
    followed = convs if block.position.norm_before_addition else convs[:-1]
    return [(name, name.replace("conv", "bn")) for name in followed]


def _fold(parent: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
    fused = fuse_conv_bn_eval(cast(nn.Conv3d, conv), cast(_BatchNorm, norm))
    setattr(parent, conv_name, fused)
    setattr(parent, norm_name, nn.Identity())
