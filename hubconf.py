"""Entry points of torch.hub, for example torch.hub.load("PATH_OF_A_CLONE", "ir3d_50", source="local")."""

from __future__ import annotations

import typing

from video_iresnet import models
from video_iresnet.models import resnet

if typing.TYPE_CHECKING:
    from video_iresnet.inference import Classifier

dependencies = ["torch"]
FAMILIES = {
    "r3d": "resnet",
    "rs3d": "resstage",
    "ir3d": "iresnet",
    "rg3d": "resgroup",
    "rgf3d": "resgroupfix",
    "irg3d": "iresgroup",
    "irgf3d": "iresgroupfix",
}


def load(checkpoint: str, device: str | None = None) -> Classifier:
    """Read a trained checkpoint, or the folder of a run, as an object that classifies video files:
    `load("output/demo")("clip.mp4").top(5)`. Needs all that pyproject.toml lists.
    """
    from video_iresnet.inference import load as classifier

    return classifier(checkpoint, device)


def _entry(arch: str, depth: int) -> typing.Callable[..., models.ResNet]:
    def create(num_classes: int = 400, **arguments: typing.Any) -> models.ResNet:
        return models.create_model(arch, depth, num_classes=num_classes, **arguments)

    create.__doc__ = (
        f"3D {arch}-{depth}, with random weights: (B, 3, T, H, W) clips -> (B, num_classes) logits. More "
        "arguments: see video_iresnet.models.create_model; weights: video_iresnet.models.load_weights."
    )
    return create


for _family, _arch in FAMILIES.items():
    for _depth in resnet.GROUPED_DEPTHS if models.ARCHITECTURES[_arch].groups else models.DEPTHS:
        globals()[f"{_family}_{_depth}"] = _entry(_arch, _depth)
