"""Which frames make a clip: integer functions of the number of frames; no video in sight.

A clip of T frames, tau apart, spans (T - 1) * tau + 1 source frames. Where a video is shorter, its last frame repeats.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Sampler(Protocol):
    """The clips of one video of `length` frames, each a list of frame indices in [0, length)."""

    def random_clip(self, length: int, rng: np.random.Generator) -> list[int]: ...

    def uniform_clips(self, length: int, num_clips: int) -> list[list[int]]: ...


@dataclass(frozen=True)
class DenseSampler:
    """Frames exactly `sampling_rate` apart, from a random start or from starts spread over the video."""

    num_frames: int
    sampling_rate: int

    @property
    def span(self) -> int:
        return (self.num_frames - 1) * self.sampling_rate + 1

    def _clip(self, length: int, start: int) -> list[int]:
        return [min(start + i * self.sampling_rate, length - 1) for i in range(self.num_frames)]

    def random_clip(self, length: int, rng: np.random.Generator) -> list[int]:
        return self._clip(length, int(rng.integers(max(length - self.span, 0) + 1)))

    def uniform_clips(self, length: int, num_clips: int) -> list[list[int]]:
        """Clips spread evenly and flush with both ends of the video; a single one is centred."""
        last = max(length - self.span, 0)
        starts = [last // 2] if num_clips == 1 else [(i * last + (num_clips - 1) // 2) // (num_clips - 1) for i in range(num_clips)]
        return [self._clip(length, start) for start in starts]


@dataclass(frozen=True)
class SegmentSampler:
    """One frame of each of `num_frames` equal segments, as for Something-Something: a random one, or the middle one.

    The bounds are PySlowFast's: segment i runs from round(s * i) to round(s * (i + 1)), s = (length - 1) / num_frames, both ends
    included, halves rounded to even. Of n test clips, clip k takes the frame at the share (k + 1) / (n + 1) of each segment.
    """

    num_frames: int

    def _bounds(self, length: int) -> list[int]:
        return [round((length - 1) / self.num_frames * i) for i in range(self.num_frames + 1)]

    def random_clip(self, length: int, rng: np.random.Generator) -> list[int]:
        bounds = self._bounds(length)
        return [int(rng.integers(first, last + 1)) for first, last in itertools.pairwise(bounds)]

    def uniform_clips(self, length: int, num_clips: int) -> list[list[int]]:
        bounds = self._bounds(length)
        return [[first + (last - first) * (k + 1) // (num_clips + 1) for first, last in itertools.pairwise(bounds)] for k in range(num_clips)]
