"""Inflate image kernels to video kernels, and check that the network still agrees on identical frames."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from .resnet import ResNet

METHODS = ("average", "center")


def inflate_kernel(kernel: Tensor, temporal_size: int, method: str) -> Tensor:
    """(out, in, h, w) -> (out, in, temporal_size, h, w).

    average: the kernel at every moment, divided by their number (Carreira and Zisserman, arXiv 1705.07750).
    center: the kernel at the middle moment, zeros around it, so that a clip of identical frames gives exactly
    the image network's activations, borders included.
    """
    if method == "average":
        return kernel.unsqueeze(2).repeat(1, 1, temporal_size, 1, 1) / temporal_size
    inflated = kernel.new_zeros((*kernel.shape[:2], temporal_size, *kernel.shape[2:]))
    inflated[:, :, temporal_size // 2] = kernel
    return inflated


@torch.no_grad()
def identical_frames_difference(
    net: ResNet, values: dict[str, Tensor], image_tensors: dict[str, Tensor]
) -> float:
    """How far the logits of a clip of identical frames are from those of the image network for that frame;
    relative, computed in float64.

    `values`: what the video network is to be loaded with; it stays as it is here. `image_tensors`: the state
    of the image network under our names, with what the file lacks already filled in.
    """
    image_net = ResNet(net.plan.without_time()).double().eval()
    image_net.load_state_dict(image_tensors)
    video_net = copy.deepcopy(net).cpu().double().eval()
    video_net.load_state_dict(values, strict=False)
    image = 2 * torch.sin(torch.arange(3 * 64 * 64, dtype=torch.float64) * 0.37).view(1, 3, 64, 64)
    expected = image_net(image)
    actual = video_net(image.unsqueeze(2).expand(-1, -1, max(8, 2 * net.plan.stride[0]), -1, -1))
    return float((actual - expected).norm() / expected.norm())
