"""Random transforms of training clips: draw once per clip, then apply pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .functional import crop, erase, flip, resize, short_side_size
from .labels import Label, classes_of, exchanged

# (T, H, W, C) and size -> (T, size, size, C).
Crop = Callable[[Tensor, int, np.random.Generator], Tensor]
# (T, S, S, C) -> (T, S, S, C).
Transform = Callable[[Tensor, np.random.Generator], Tensor]


@dataclass(frozen=True)
class ShortSideJitter:
    """Crop a random square as if the short side were resized to a length drawn from [smallest, largest],
    uniformly, or with `inverse` uniformly in its inverse.

    The lengths refer to crops of `size` pixels. Larger crops scale both; smaller ones scale only `smallest`,
    so that they show as much of the picture or less (as in PySlowFast's multigrid training). The square is
    cut from the source frame before resizing, which gives the same picture for less work.
    """

    size: int
    smallest: int
    largest: int
    inverse: bool = False

    def _short_side(self, size: int, rng: np.random.Generator) -> int:
        smallest = round(self.smallest * size / self.size)
        largest = round(self.largest * max(size / self.size, 1))
        if self.inverse:
            return round(1 / rng.uniform(1 / largest, 1 / smallest))
        return int(rng.integers(smallest, largest + 1))

    def __call__(self, clip: Tensor, size: int, rng: np.random.Generator) -> Tensor:
        height, width = clip.shape[1:3]
        side = max(1, round(size * min(height, width) / self._short_side(size, rng)))
        top = int(rng.integers(height - side + 1))
        left = int(rng.integers(width - side + 1))
        return resize(crop(clip, top, left, side, side), size, size)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crop a random fraction of the area with a random aspect ratio (width / height, log-uniform), and resize
    it to a square.

    After ten draws that do not fit, take the largest centred crop of an allowed aspect (Szegedy et al., arXiv
    1409.4842, as in torchvision).
    """

    area: tuple[float, float]
    aspect: tuple[float, float]

    def __call__(self, clip: Tensor, size: int, rng: np.random.Generator) -> Tensor:
        height, width = clip.shape[1:3]
        for h, w in _random_sizes(height * width, self.area, self.aspect, rng):
            if 0 < h <= height and 0 < w <= width:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                return resize(crop(clip, top, left, h, w), size, size)
        h = min(height, round(width / self.aspect[0]))
        w = min(width, round(height * self.aspect[1]))
        return resize(crop(clip, (height - h) // 2, (width - w) // 2, h, w), size, size)


@dataclass(frozen=True)
class PaddedCrop:
    """Crop a random square from a clip with `padding` black pixels on each side, whose short side is the size
    of the crop before (He et al., arXiv 1512.03385, section 4.2, for CIFAR).
    """

    padding: int

    def __call__(self, clip: Tensor, size: int, rng: np.random.Generator) -> Tensor:
        clip = resize(clip, *short_side_size(clip.shape[1], clip.shape[2], size))
        p = self.padding
        clip = F.pad(clip, (0, 0, p, p, p, p))
        top, left = (int(rng.integers(length - size + 1)) for length in clip.shape[1:3])
        return crop(clip, top, left, size, size)


def _random_sizes(
    area: int, fractions: tuple[float, float], aspects: tuple[float, float], rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Yield ten random (height, width): a fraction of the area, uniform between `fractions`, with an aspect
    ratio (width / height), log-uniform between `aspects`.
    """
    for _ in range(10):
        part = area * rng.uniform(*fractions)
        aspect = math.exp(rng.uniform(math.log(aspects[0]), math.log(aspects[1])))
        yield round(math.sqrt(part / aspect)), round(math.sqrt(part * aspect))


@dataclass(frozen=True)
class RandomFlip:
    """Flip half of the clips horizontally. `partners`: pairs of classes that swap; `fixed`: classes that are
    never flipped.
    """

    partners: Mapping[int, int]
    fixed: frozenset[int] = frozenset()

    def __call__(self, clip: Tensor, label: Label, rng: np.random.Generator) -> tuple[Tensor, Label]:
        """(T, H, W, C) and its label -> the clip or its mirror image, and its label."""
        if rng.random() >= 0.5 or not self.fixed.isdisjoint(classes_of(label)):
            return clip, label
        return flip(clip), exchanged(label, self.partners)


@dataclass(frozen=True)
class OnAllFrames:
    """A random transform of torchvision, drawn once for all frames from the sample's generator."""

    transform: Callable[[Tensor], Tensor]

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            return self.transform(clip.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class RandomErasing:
    """Fill a box with noise, the same in all frames, with `probability` (Zhong et al., arXiv 1708.04896,
    `pixel` mode).

    The box covers 1/50 to 1/3 of the area, with an aspect ratio from 0.3 to 1 / 0.3.
    """

    probability: float

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        if rng.random() >= self.probability:
            return clip
        height, width = clip.shape[1:3]
        for h, w in _random_sizes(height * width, (1 / 50, 1 / 3), (0.3, 1 / 0.3), rng):
            if 0 < h < height and 0 < w < width:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                noise = torch.from_numpy(rng.integers(0, 256, (h, w, clip.shape[3]), dtype=np.uint8))
                return erase(clip, top, left, noise)
        return clip


@dataclass(frozen=True)
class Compose:
    """Several transforms, one after another."""

    transforms: Sequence[Transform]

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        for transform in self.transforms:
            clip = transform(clip, rng)
        return clip
