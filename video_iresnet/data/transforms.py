"""Random transforms of a training clip: draw once for the whole clip, then apply pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .functional import crop, flip, resize

Transform = Callable[[Tensor, np.random.Generator], Tensor]


@dataclass(frozen=True)
class ShortSideJitter:
    """Crop a random square of `size` pixels from the video as if its short side were uniform in [smallest, largest].

    The square is cut from the source frame and then scaled, which gives the same picture as scaling the whole frame first, for less work.
    """

    size: int
    smallest: int
    largest: int

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """(T, H, W, C) -> (T, size, size, C)."""
        height, width = clip.shape[1:3]
        short_side = int(rng.integers(self.smallest, self.largest + 1))
        side = max(1, round(self.size * min(height, width) / short_side))
        top = int(rng.integers(height - side + 1))
        left = int(rng.integers(width - side + 1))
        return resize(crop(clip, top, left, side), self.size, self.size)


@dataclass(frozen=True)
class RandomFlip:
    """Mirror half of the clips."""

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """(T, H, W, C) -> (T, H, W, C)."""
        return flip(clip) if rng.random() < 0.5 else clip


@dataclass(frozen=True)
class InTurn:
    """Several transforms, one after the other."""

    transforms: Sequence[Transform]

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        for transform in self.transforms:
            clip = transform(clip, rng)
        return clip
