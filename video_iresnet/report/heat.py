"""Heat drawn over frames, and its scale."""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .contact_sheet import MARGIN

# Its brightness rises evenly, also for colour-blind eyes.
COLOUR_MAP = "inferno"
OPACITY = 0.75  # of the greatest heat
BAR = (160, 10)  # width and height in pixels


def heat_colours(heat: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Heat (...) in [0, 1] -> colours (..., 3)."""
    rgb = matplotlib.colormaps[COLOUR_MAP](np.asarray(heat, np.float64))[..., :3]
    return np.asarray(np.rint(255 * rgb), np.uint8)


def heated(frames: Tensor, heat: Tensor) -> Tensor:
    """(..., H, W, 3) uint8 frames and (..., H, W) heat in [0, 1] -> the frames in grey under the colours of
    the heat, which are the less transparent the greater it is.
    """
    grey = frames.float() @ torch.tensor([0.299, 0.587, 0.114])  # the luma of ITU-R BT.601
    opacity = (OPACITY * heat.clamp(0, 1).sqrt())[..., None]
    colours = torch.from_numpy(heat_colours(heat.numpy())).float()
    return (opacity * colours + (1 - opacity) * grey[..., None]).round().to(torch.uint8)


def enlarged(frames: Tensor, smallest: int) -> Tensor:
    """(..., H, W, C) -> the same with each pixel repeated a whole number of times, so that the shorter side
    has at least `smallest` pixels.
    """
    factor = max(1, -(-smallest // min(frames.shape[-3:-1])))
    return frames.repeat_interleave(factor, -3).repeat_interleave(factor, -2)


def with_scale(picture: Image.Image, text: str) -> Image.Image:
    """Return a picture with the scale of the heat and a text below it."""
    width, height = BAR
    result = Image.new("RGB", (picture.width, picture.height + height + 2 * MARGIN), "white")
    result.paste(picture)
    scale = np.repeat(heat_colours(np.linspace(0, 1, width))[None], height, 0)
    result.paste(Image.fromarray(scale), (MARGIN, picture.height))
    place = 2 * MARGIN + width, picture.height + height // 2
    ImageDraw.Draw(result).text(place, text, "black", ImageFont.load_default(11), anchor="lm")
    return result
