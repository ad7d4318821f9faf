"""Pure operations on a uint8 clip (T, H, W, C). Positions are (top, left)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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


class Place(NamedTuple):
    """Where a square is cut out, and whether it is mirrored then."""

    top: int
    left: int
    is_mirrored: bool = False


def cut(clip: Tensor, place: Place, size: int) -> Tensor:
    """(T, H, W, C) -> (T, size, size, C), a view unless it is mirrored."""
    square = crop(clip, place.top, place.left, size, size)
    return flip(square) if place.is_mirrored else square


def half_up(margin: int) -> int:
    """Halve a margin as PySlowFast does for a centred crop: the larger half of an odd one."""
    return -(-margin // 2)


def half_even(margin: int) -> int:
    """Halve a margin as torchvision's center_crop does: the even half of an odd one."""
    return round(margin / 2)


def spread_crops(
    height: int, width: int, size: int, num_crops: int, halve: Callable[[int], int] = half_up
) -> list[Place]:
    """Return the places of 1 crop (centre), of 3 (start, centre and end of the longer side; in x for squares,
    as in PySlowFast), or of 10 (the corners and the centre, each also mirrored).

    The crop in the middle of the list is the centre. `halve`: a margin -> where the centre begins.
    """
    bottom, right = height - size, width - size
    top, left = halve(bottom), halve(right)
    if num_crops == 1:
        return [Place(top, left)]
    if num_crops == 10:
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        mirrored = [Place(y, right - x, is_mirrored=True) for y, x in [(top, left), *corners]]
        return [Place(*corner) for corner in corners] + [mirrored[0], Place(top, left), *mirrored[1:]]
    if width >= height:
        return [Place(top, 0), Place(top, left), Place(top, right)]
    return [Place(0, left), Place(top, left), Place(bottom, left)]


def normalize(clips: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Convert uint8 to float and normalize per channel; `mean` and `std` are (3, 1, 1, 1), for values in [0,
    1]. Keeps the memory layout.
    """
    return clips.to(torch.float32).sub_(mean * 255).div_(std * 255)
