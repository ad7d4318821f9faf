"""Pure operations on a uint8 clip (T, H, W, C). Positions are (top, left)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize(clip: Tensor, height: int, width: int) -> Tensor:
    """(T, H, W, C) -> (T, height, width, C), bilinear and antialiased, in uint8."""
    if clip.shape[1:3] == (height, width):
        return clip
    resized = F.interpolate(clip.permute(0, 3, 1, 2), (height, width), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (height, width) with a shorter side of `short_side`; the longer side is rounded down, as in
    PySlowFast.
    """
    if height <= width:
        return short_side, short_side * width // height
    return short_side * height // width, short_side


def crop(clip: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """(T, H, W, C) -> (T, height, width, C), a view."""
    return clip[:, top : top + height, left : left + width]


def flip(clip: Tensor) -> Tensor:
    """Flip horizontally."""
    return clip.flip(2)


def erase(clip: Tensor, top: int, left: int, filling: Tensor) -> Tensor:
    """Return a copy of the clip with an (h, w, C) picture at the same position in all frames."""
    clip = clip.clone()
    clip[:, top : top + filling.shape[0], left : left + filling.shape[1]] = filling
    return clip


def spread_crops(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    """Return the positions of 1 crop (centre) or 3 (start, centre and end of the longer side; in x for
    squares, as in PySlowFast).
    """
    top, left = -(-(height - size) // 2), -(-(width - size) // 2)
    if num_crops == 1:
        return [(top, left)]
    if width >= height:
        return [(top, 0), (top, left), (top, width - size)]
    return [(0, left), (top, left), (height - size, left)]


def normalize(clips: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Convert uint8 to float and normalize per channel; `mean` and `std` are (3, 1, 1, 1), for values in [0,
    1]. Keeps the memory layout.
    """
    return clips.to(torch.float32).sub_(mean * 255).div_(std * 255)
