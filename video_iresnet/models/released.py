"""Checkpoints of other projects: maps from their tensor names to ours, and identification of networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from .blocks import BasicBlock, Bottleneck
from .resnet import ARCHITECTURES, DEPTHS

Rules = tuple[tuple[str, str], ...]


class Layout(NamedTuple):
    """The tensor names of a project: a prefix that only it has, and substitutions that give our names."""

    name: str
    marker: str
    rules: Rules


def _stage_rules(prefix: str, numbers: tuple[int, int, int, int]) -> Rules:
    """Return substitutions for the blocks of the four stages, which have these numbers."""
    return tuple(
        (prefix.format(number), rf"layer{stage}.\1.") for stage, number in enumerate(numbers, start=1)
    )


_PYTORCHVIDEO: Rules = (
    (r"^blocks\.0\.conv\.", "conv1."),
    (r"^blocks\.0\.norm\.", "bn1."),
    (r"^blocks\.[56]\.proj\.", "fc."),
    (r"\.branch1_conv\.", ".downsample.0."),
    (r"\.branch1_norm\.", ".downsample.1."),
    *((rf"\.branch2\.conv_{letter}\.", f".conv{number}.") for number, letter in enumerate("abc", start=1)),
    *((rf"\.branch2\.norm_{letter}\.", f".bn{number}.") for number, letter in enumerate("abc", start=1)),
)
_PYTORCHVIDEO_BLOCK = r"^blocks\.{}\.res_blocks\.(\d+)\."

# The names are facts about the files that each project distributes. Of PyTorchVideo's networks those with a
# temporal pool hold it as block 2.
LAYOUTS = (
    Layout("video_iresnet, released iResNet or torchvision 2D", r"^conv1\.weight", ()),
    Layout(
        "torchvision video ResNet",
        r"^stem\.0\.weight",
        (
            (r"^stem\.0\.", "conv1."),
            (r"^stem\.1\.", "bn1."),
            (r"\.conv(\d)\.0\.(?=weight)", r".conv\1."),
            (r"\.conv(\d)\.1\.", r".bn\1."),
        ),
    ),
    Layout(
        "PyTorchVideo slow",
        r"^blocks\.2\.res_blocks\.",
        _PYTORCHVIDEO + _stage_rules(_PYTORCHVIDEO_BLOCK, (1, 2, 3, 4)),
    ),
    Layout(
        "PyTorchVideo c2d or i3d",
        r"^blocks\.3\.res_blocks\.",
        _PYTORCHVIDEO + _stage_rules(_PYTORCHVIDEO_BLOCK, (1, 3, 4, 5)),
    ),
    Layout(
        "PySlowFast",
        r"^s1\.pathway0_stem\.",
        (
            (r"^s1\.pathway0_stem\.conv\.", "conv1."),
            (r"^s1\.pathway0_stem\.bn\.", "bn1."),
            (r"^head\.projection\.", "fc."),
            (r"\.branch1\.", ".downsample.0."),
            (r"\.branch1_bn\.", ".downsample.1."),
            *((rf"\.branch2\.{letter}\.", f".conv{number}.") for number, letter in enumerate("abc", start=1)),
            *(
                (rf"\.branch2\.{letter}_bn\.", f".bn{number}.")
                for number, letter in enumerate("abc", start=1)
            ),
            *_stage_rules(r"^s{}\.pathway0_res(\d+)\.", (2, 3, 4, 5)),
        ),
    ),
)
WRAPPERS = ("module.", "_orig_mod.", "model.")


def to_our_names(tensors: Mapping[str, Tensor]) -> tuple[Layout, dict[str, str]] | None:
    """Return the layout of a file's tensors and {our name: its name}; None if no layout fits. Unknown names
    are kept.
    """
    names = {key: key for key in tensors}
    while prefix := next((w for w in WRAPPERS if names and all(name.startswith(w) for name in names)), None):
        names = {name.removeprefix(prefix): key for name, key in names.items()}
    for layout in LAYOUTS:
        if any(re.search(layout.marker, name) for name in names):
            return layout, {_renamed(name, layout.rules): key for name, key in names.items()}
    return None


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def roles(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return {role of a tensor: its name}. They differ only in shortcuts, where a pool shifts the numbers of
    convolution and BN.
    """
    found = {}
    for name in tensors:
        match = re.fullmatch(r"(.+\.downsample\.)(\d+)(\..+)", name)
        if match:
            weight = tensors.get(f"{match[1]}{match[2]}.weight")
            found[f"{match[1]}{'conv' if weight is not None and weight.ndim > 1 else 'norm'}{match[3]}"] = (
                name
            )
        else:
            found[name] = name
    return found


def describe(tensors: Mapping[str, Tensor]) -> str:
    """Return the nearest architecture and depth of tensors under our names, e.g. "iresnet-50 for images", or
    "no residual network".

    ResNets and ResStages with two blocks per stage have the same tensors; they are called resnet.
    """
    stages: dict[int, int] = {}
    for name in tensors:
        if match := re.match(r"layer(\d)\.(\d{1,4})\.", name):
            stages[int(match[1])] = max(stages.get(int(match[1]), 0), int(match[2]) + 1)
    kernel = tensors.get("conv1.weight")
    if not stages or kernel is None or kernel.ndim < 4:
        return "no residual network"
    blocks = [stages.get(stage, 0) for stage in range(1, max(stages) + 1)]
    block = Bottleneck if "layer1.0.conv3.weight" in tensors else BasicBlock
    if len(blocks) == 3:
        depth = 3 * sum(blocks) + 2
    else:
        distance = {
            d: sum(abs(a - b) for a, b in zip(blocks, each, strict=False))
            for d, (kind, each) in DEPTHS.items()
            if kind is block
        }
        depth = min(distance, key=lambda d: distance[d])
    improved = any(
        re.fullmatch(r".+\.downsample\.1\.weight", name) and tensor.ndim > 1
        for name, tensor in tensors.items()
    )
    stage_blocks = improved or any(".bn0." in name for name in tensors)
    conv2 = [tensors.get(f"layer{stage}.0.conv2.weight") for stage in range(1, len(blocks) + 1)]
    groups = [
        each.shape[0] // each.shape[1]
        for each in conv2
        if each is not None and min(each.shape[1:2], default=0)
    ]
    grouped = (
        ""
        if max(groups, default=1) == 1 or block is BasicBlock
        else "fix"
        if len(set(groups)) == 1
        else "progressive"
    )
    fitting = [
        name
        for name, each in ARCHITECTURES.items()
        if (each.stage_blocks, each.improved_shortcut) == (stage_blocks, improved)
        and grouped == ("" if each.groups is None else "fix" if len(set(each.groups)) == 1 else "progressive")
    ]
    width = "" if kernel.shape[0] == (16 if len(blocks) == 3 else 64) else f", width {kernel.shape[0]}"
    kind = "video" if kernel.ndim == 5 else "images"
    return f"{fitting[0] if fitting else 'resnet'}-{depth} for {kind}{width}"
