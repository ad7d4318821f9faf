"""Grad-CAM: where in a clip a network sees a class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models import ResNet

# A side: those of the last features at 224 pixels, with which the paper explains ResNets.
FEWEST_POSITIONS = 7


def grad_cam(network: ResNet, clips: Tensor, labels: Tensor, stage: str | None = None) -> Tensor:
    """(B, 3, T, H, W) normalized clips and (B,) classes -> (B, T, H, W) heat in [0, 1].

    Grad-CAM of Selvaraju et al., arXiv 1610.02391, equations 1 and 2, over space and time: the channels of a
    stage's output, each weighted by the mean gradient of the class's logit over all positions, are summed and
    rectified. The sum is interpolated linearly to the size of the clip and divided by its maximum over the
    whole clip, so that frames can be compared. Where nothing speaks for the class, all heat is 0.

    `stage`: one of network.stage_names, by default default_stage's. The network must be in evaluation mode,
    and nothing in it changes. Raises ValueError.
    """
    if network.training:
        raise ValueError("the network is in training mode; call network.eval() first")
    stage = stage or default_stage(network, min(clips.shape[3:]))
    # The gradient needs the graph from the stage on alone.
    with torch.inference_mode(False), torch.no_grad():
        maps = network.features_of(stage, clips.clone())
        with torch.enable_grad():
            logits = network.logits_from(stage, maps.requires_grad_())
            chosen = logits.gather(1, labels.to(logits.device)[:, None])
            (gradients,) = torch.autograd.grad(chosen.sum(), maps)
        weights = gradients.mean((2, 3, 4), keepdim=True)
        heat = F.relu((weights * maps).sum(1, keepdim=True))
        heat = F.interpolate(heat, clips.shape[2:], mode="trilinear", align_corners=False)[:, 0]
        largest = heat.amax((1, 2, 3), keepdim=True)
        return heat / torch.where(largest > 0, largest, 1)


def default_stage(network: ResNet, size: int) -> str:
    """Return the last stage that has at least FEWEST_POSITIONS a side for clips of `size` pixels.

    Later stages know more of the class and less of the place; the paper takes the last one at 224 pixels.
    """
    fine = [
        name
        for name, (_, stride, _) in zip(network.stage_names, network.plan.strides, strict=True)
        if -(-size // stride) >= FEWEST_POSITIONS
    ]
    return fine[-1] if fine else network.stage_names[0]
