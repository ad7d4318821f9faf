"""Clip sampling: integer functions of the number of frames and the frame rate.

A clip of T frames, tau apart, spans (T - 1) * tau + 1 source frames. In shorter videos the last frame
repeats.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class Timeline(NamedTuple):
    """What a sampler needs of a video: the number of frames and their rate."""

    length: int
    fps: float


class Sampler(Protocol):
    """The clips of one video, each a list of `num_frames` frame indices in [0, length).

    `largest_rate`: draw the sampling rate of a random clip from [sampling_rate, largest_rate]; 0: do not.
    """

    def random_clip(
        self, video: Timeline, num_frames: int, rng: np.random.Generator, largest_rate: int = 0
    ) -> list[int]: ...

    def uniform_clips(self, video: Timeline, num_frames: int, num_clips: int) -> list[list[int]]: ...


def _drawn_rate(smallest: int, largest: int, rng: np.random.Generator) -> int:
    return int(rng.integers(smallest, largest + 1)) if largest else smallest


@dataclass(frozen=True)
class DenseSampler:
    """Frames exactly `sampling_rate` apart, from a random start or from starts spread over the video.

    `target_fps`: count the rate in frames at this speed, taking the nearest source frames; 0: in source
    frames.
    """

    sampling_rate: int
    target_fps: float = 0.0

    def _offsets(self, video: Timeline, num_frames: int, rate: int) -> list[int]:
        """Return the offsets of the frames from the first one."""
        step = rate * video.fps / self.target_fps if self.target_fps else rate
        return [round(i * step) for i in range(num_frames)]

    def random_clip(
        self, video: Timeline, num_frames: int, rng: np.random.Generator, largest_rate: int = 0
    ) -> list[int]:
        rate = _drawn_rate(self.sampling_rate, largest_rate, rng)
        offsets = self._offsets(video, num_frames, rate)
        start = int(rng.integers(max(video.length - 1 - offsets[-1], 0) + 1))
        return [min(start + offset, video.length - 1) for offset in offsets]

    def uniform_clips(self, video: Timeline, num_frames: int, num_clips: int) -> list[list[int]]:
        """Return clips spread evenly and flush with both ends of the video; a single clip is centred."""
        offsets = self._offsets(video, num_frames, self.sampling_rate)
        last = max(video.length - 1 - offsets[-1], 0)
        starts = (
            [last // 2]
            if num_clips == 1
            else [(i * last + (num_clips - 1) // 2) // (num_clips - 1) for i in range(num_clips)]
        )
        return [[min(start + offset, video.length - 1) for offset in offsets] for start in starts]


@dataclass(frozen=True)
class SegmentSampler:
    """One frame of each of equal segments, as for Something-Something: a random one, or the middle one.

    The bounds are PySlowFast's: segment i is [round(s * i), round(s * (i + 1))], with s = (length - 1) /
    num_frames and halves rounded to even. Of n test clips, clip k takes the frame at the fraction (k + 1) /
    (n + 1) of each segment.
    """

    @staticmethod
    def _bounds(video: Timeline, num_frames: int) -> list[int]:
        return [round((video.length - 1) / num_frames * i) for i in range(num_frames + 1)]

    def random_clip(
        self, video: Timeline, num_frames: int, rng: np.random.Generator, largest_rate: int = 0
    ) -> list[int]:
        return [
            int(rng.integers(first, last + 1))
            for first, last in itertools.pairwise(self._bounds(video, num_frames))
        ]

    def uniform_clips(self, video: Timeline, num_frames: int, num_clips: int) -> list[list[int]]:
        bounds = self._bounds(video, num_frames)
        return [
            [
                first + (last - first) * (k + 1) // (num_clips + 1)
                for first, last in itertools.pairwise(bounds)
            ]
            for k in range(num_clips)
        ]


@dataclass(frozen=True)
class SlowFastSampler:
    """PySlowFast's arithmetic for Kinetics: frames evenly spread over num_frames * sampling_rate / target_fps
    seconds.

    Frames are (T * tau - 1) / (T - 1) apart at `target_fps`, rounded down. Of n test clips, clip k starts at
    the fraction k / n of the possible starts, and a single one is the first; with `offset_sampling` at k / (n
    - 1), rounded down, and a single one is centred.
    """

    sampling_rate: int
    target_fps: float
    offset_sampling: bool = False

    def _window(self, video: Timeline, num_frames: int, rate: int) -> tuple[float, float]:
        """Return the span of a clip and the last possible start, in source frames."""
        size = max(1.0, rate * num_frames / self.target_fps * video.fps)
        return size, max(video.length - size, 0.0)

    @staticmethod
    def _clip(video: Timeline, num_frames: int, start: float, size: float) -> list[int]:
        positions = np.linspace(start, start + size - 1, num_frames)
        return [int(position) for position in np.clip(positions, 0, video.length - 1)]

    def random_clip(
        self, video: Timeline, num_frames: int, rng: np.random.Generator, largest_rate: int = 0
    ) -> list[int]:
        rate = _drawn_rate(self.sampling_rate, largest_rate, rng)
        size, last = self._window(video, num_frames, rate)
        return self._clip(video, num_frames, rng.uniform(0, last), size)

    def uniform_clips(self, video: Timeline, num_frames: int, num_clips: int) -> list[list[int]]:
        size, last = self._window(video, num_frames, self.sampling_rate)
        if not self.offset_sampling:
            starts = [last * k / num_clips for k in range(num_clips)]
        elif num_clips == 1:
            starts = [last // 2]
        else:
            starts = [k * (last // (num_clips - 1)) for k in range(num_clips)]
        return [self._clip(video, num_frames, start, size) for start in starts]
