"""Targets of a batch, mixup (Zhang et al., arXiv 1710.09412) and CutMix (Yun et al., arXiv 1905.04899)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# (B, 3, T, H, W) clips and labels (see label_tensor) -> clips, and what the loss takes as target: labels, or
# (B, K) fractions.
Targets = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]


def plain_targets(clips: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return clips and labels unchanged."""
    return clips, labels


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """(B,) labels -> (B, K) fractions: `smoothing` spread over all classes, the rest on the label.

    Szegedy et al., arXiv 1512.00567.
    """
    # Not F.one_hot, which reads the labels and so waits for the device.
    hot = torch.zeros(len(labels), num_classes, device=labels.device).scatter_(1, labels[:, None], 1.0)
    return hot * (1 - smoothing) + smoothing / num_classes


def many_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """(B, N) labels, filled up with -1 -> (B, K): 1 for the labels and 0 for other classes, moved towards one
    half by `smoothing`, as each class is a question of yes or no.
    """
    hot = torch.zeros(len(labels), num_classes + 1, device=labels.device).scatter_(1, labels + 1, 1.0)
    return hot[:, 1:] * (1 - smoothing) + smoothing / 2


@dataclass(frozen=True)
class Mixer:
    """Mixes each clip of a batch with another one by mixup or CutMix, with one draw per batch.

    A batch is mixed with `probability`, by CutMix with `switch_probability` if both are on. The fraction of
    the clip itself is drawn from Beta(alpha, alpha); an alpha of 0 turns that kind off. The partners are the
    batch in reverse order. `to_targets`: labels, number of classes and `smoothing` -> (B, K) targets.
    """

    num_classes: int
    mixup_alpha: float
    cutmix_alpha: float
    probability: float
    switch_probability: float
    smoothing: float
    to_targets: Callable[[Tensor, int, float], Tensor] = smooth_targets

    def __call__(self, clips: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(B, 3, T, H, W) normalized clips, (B,) labels -> mixed clips, (B, K) targets."""
        targets = self.to_targets(labels, self.num_classes, self.smoothing)
        if rng.random() >= self.probability:
            return clips, targets
        cut = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or rng.random() < self.switch_probability)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        fraction = float(rng.beta(alpha, alpha))
        if cut:
            clips, fraction = _paste(clips, fraction, rng)
        else:
            clips = clips * fraction + clips.flip(0) * (1 - fraction)
        return clips, targets * fraction + targets.flip(0) * (1 - fraction)


def _paste(clips: Tensor, fraction: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Paste a box of the partner into all frames of each clip. Boxes are cut at the border; returns the
    fraction that remains.
    """
    height, width = clips.shape[-2:]
    h, w = (round(size * math.sqrt(1 - fraction)) for size in (height, width))
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(0, y - h // 2), min(height, y + h - h // 2)
    left, right = max(0, x - w // 2), min(width, x + w - w // 2)
    mixed = clips.clone()
    mixed[..., top:bottom, left:right] = clips.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
