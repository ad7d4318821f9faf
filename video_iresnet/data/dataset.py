"""Records, a sampler, a decoder and a transform -> samples: clips for training, all views of a video for testing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..runtime.seeding import Stream, generator
from .decode import DecodeError, OpenVideo
from .functional import resize, short_side_size, spread_crops
from .records import Record
from .sampling import Sampler
from .transforms import Transform

FRAMES_AT_ONCE = 16  # how many full-size frames of a test video are in memory at a time
REPLACEMENTS = 100  # how many other videos are tried in the place of an unreadable one


class Failure(NamedTuple):
    """A video that could not be read."""

    record: int
    reason: str


class TrainSample(NamedTuple):
    """A clip (3, T, S, S) uint8 stored as (T, S, S, 3), its label, and the unreadable videos in whose place it stands.

    The clip is empty where none of the videos that were tried can be read.
    """

    clip: Tensor
    label: int
    failures: list[Failure]


class ClipDataset(Dataset[TrainSample]):
    """(epoch, record) -> one random clip; the same one for any number of workers, processes and restarts.

    Where a video cannot be read, another record's clip of the same epoch takes its place, drawn from (seed, epoch, record).
    """

    def __init__(self, records: Sequence[Record], *, sampler: Sampler, open_video: OpenVideo, transform: Transform, seed: int) -> None:
        self.records = records
        self.sampler = sampler
        self.open_video = open_video
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> TrainSample:
        epoch, record = key
        replacement = generator(self.seed, Stream.REPLACEMENT, epoch, record)
        failures: list[Failure] = []
        while len(failures) <= REPLACEMENTS:
            try:
                return TrainSample(self._clip(epoch, record), self.records[record].label, failures)
            except DecodeError as error:
                failures.append(Failure(record, str(error)))
            record = int(replacement.integers(len(self.records)))
        return TrainSample(torch.empty(0, dtype=torch.uint8), -1, failures)

    def _clip(self, epoch: int, record: int) -> Tensor:
        rng = generator(self.seed, Stream.SAMPLE, epoch, record)
        with self.open_video(self.records[record]) as reader:
            frames = reader.read(self.sampler.random_clip(len(reader), rng))
        return self.transform(frames, rng).contiguous().permute(3, 0, 1, 2)


class VideoViews(NamedTuple):
    """A test video: N resized frames (N, H, W, 3) uint8, and its views as indices into them; or why it cannot be read.

    `clips`: for each clip, the positions of its T frames in `frames`. `crops`: (top, left) of each square of `crop_size` pixels.
    """

    record: int
    frames: Tensor
    clips: list[list[int]]
    crops: list[tuple[int, int]]
    error: str


class ViewDataset(Dataset[VideoViews]):
    """record -> all views of a video, from one decoding and one resize."""

    def __init__(
        self, records: Sequence[Record], *, sampler: Sampler, open_video: OpenVideo, num_clips: int, num_crops: int, short_side: int, crop_size: int
    ) -> None:
        self.records = records
        self.sampler = sampler
        self.open_video = open_video
        self.num_clips = num_clips
        self.num_crops = num_crops
        self.short_side = short_side
        self.crop_size = crop_size

    @property
    def protocol(self) -> str:
        """What is tested, in the field's words: `10x3 @256` is ten clips by three crops of 256 pixels."""
        scale = "" if self.short_side == self.crop_size else f" of short side {self.short_side}"
        return f"{self.num_clips}x{self.num_crops} @{self.crop_size}{scale}"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, record: int) -> VideoViews:
        try:
            return self._views(record)
        except DecodeError as error:
            return VideoViews(record, torch.empty(0), [], [], str(error))

    def _views(self, record: int) -> VideoViews:
        with self.open_video(self.records[record]) as reader:
            clips = self.sampler.uniform_clips(len(reader), self.num_clips)
            wanted = sorted({index for clip in clips for index in clip})
            chunks = []
            for first in range(0, len(wanted), FRAMES_AT_ONCE):
                frames = reader.read(wanted[first : first + FRAMES_AT_ONCE])
                chunks.append(resize(frames, *short_side_size(frames.shape[1], frames.shape[2], self.short_side)))
        frames = torch.cat(chunks).contiguous()
        position = {index: p for p, index in enumerate(wanted)}
        crops = spread_crops(frames.shape[1], frames.shape[2], self.crop_size, self.num_crops)
        return VideoViews(record, frames, [[position[index] for index in clip] for clip in clips], crops, "")
