"""Inflate 2D kernels to 3D, and check that both networks agree on identical frames."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from .resnet import ResNet

METHODS = ("average", "center")


def inflate_kernel(kernel: Tensor, temporal_size: int, method: str) -> Tensor:
    """(out, in, h, w) -> (out, in, temporal_size, h, w).

    average: the kernel at all temporal positions, divided by their number (Carreira and Zisserman, arXiv
    1705.07750). center: the kernel at the middle position and zeros elsewhere, so that a clip of identical
    frames gives exactly the activations of the image network, borders included.
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
    """Return the relative difference, in float64, between the logits for a clip of identical frames and those
    of the image network for the frame.

    `values`: the weights to be loaded into the video network, which is not changed. `image_tensors`: the
    state of the image network under our names, complete.
    """
    image_net = ResNet(net.plan.without_time()).double().eval()
    image_net.load_state_dict(image_tensors)
    video_net = copy.deepcopy(net).cpu().double().eval()
    video_net.load_state_dict(values, strict=False)
    image = 2 * torch.sin(torch.arange(3 * 64 * 64, dtype=torch.float64) * 0.37).view(1, 3, 64, 64)
    expected = image_net(image)
    actual = video_net(image.unsqueeze(2).expand(-1, -1, max(8, 2 * net.plan.stride[0]), -1, -1))
    return float((actual - expected).norm() / expected.norm())
