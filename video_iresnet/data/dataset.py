"""Datasets: clips for training, all views of a video for testing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..runtime.seeding import Stream, generator
from .decode import DecodeError, OpenVideo, Reader
from .functional import Place, half_up, resize, short_side_size, spread_crops
from .labels import Label
from .records import Record
from .sampling import Sampler, Timeline
from .transforms import Crop, RandomFlip, Transform

FRAMES_AT_ONCE = 16  # full-size frames of a test video in memory at a time
REPLACEMENTS = 100  # videos tried in place of an unreadable one


class Failure(NamedTuple):
    """A video that cannot be read."""

    record: int
    reason: str


class SampleKey(NamedTuple):
    """A sample to load, its size, and the largest sampling rate (0: the sampler's own). Comes from the batch
    sampler, as attributes set on a dataset never reach workers.
    """

    epoch: int
    record: int
    num_frames: int
    crop_size: int
    largest_rate: int = 0


class TrainSample(NamedTuple):
    """Clips (3, T, S, S) uint8, views of (T, S, S, 3) buffers, their labels, and the unreadable videos that
    they replace.

    `clips` is empty if all videos that were tried are unreadable.
    """

    clips: list[Tensor]
    labels: list[Label]
    failures: list[Failure]


class ClipDataset(Dataset[TrainSample]):
    """key -> random clips of a record, independent of the number of workers, processes and restarts.

    A clip is decoded once and augmented `num_samples` times. An unreadable video is replaced by a clip of
    another record, drawn from (seed, epoch, record).
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        sampler: Sampler,
        open_video: OpenVideo,
        crop: Crop,
        flip: RandomFlip | None,
        augment: Transform,
        seed: int,
        num_samples: int = 1,
    ) -> None:
        self.records = records
        self.sampler = sampler
        self.open_video = open_video
        self.crop = crop
        self.flip = flip
        self.augment = augment
        self.seed = seed
        self.num_samples = num_samples

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> TrainSample:
        record = key.record
        replacement = generator(self.seed, Stream.REPLACEMENT, key.epoch, record)
        failures: list[Failure] = []
        while len(failures) <= REPLACEMENTS:
            try:
                clips, labels = self._clips(key._replace(record=record))
                return TrainSample(clips, labels, failures)
            except DecodeError as error:
                failures.append(Failure(record, str(error)))
            record = int(replacement.integers(len(self.records)))
        return TrainSample([], [], failures)

    def _clips(self, key: SampleKey) -> tuple[list[Tensor], list[Label]]:
        record = self.records[key.record]
        rng = generator(self.seed, Stream.SAMPLE, key.epoch, key.record)
        with self.open_video(record) as reader:
            video = Timeline(len(reader), reader.fps)
            frames = reader.read(self.sampler.random_clip(video, key.num_frames, rng, key.largest_rate))
        clips, labels = [], []
        for _ in range(self.num_samples):
            clip, label = self.crop(frames, key.crop_size, rng), record.label
            if self.flip:
                clip, label = self.flip(clip, label, rng)
            clips.append(self.augment(clip, rng).contiguous().permute(3, 0, 1, 2))
            labels.append(label)
        return clips, labels


class VideoViews(NamedTuple):
    """A test video: N resized frames (N, H, W, 3) uint8 and its views as indices, or the error.

    `clips`: the positions in `frames` of the T frames of each clip. `crops`: the place of each crop of
    `crop_size` pixels.
    """

    record: int
    frames: Tensor
    clips: list[list[int]]
    crops: list[Place]
    error: str


class ViewDataset(Dataset[VideoViews]):
    """record -> all views of a video, with one decoding and one resize. `halve`: see spread_crops."""

    def __init__(
        self,
        records: Sequence[Record],
        *,
        sampler: Sampler,
        open_video: OpenVideo,
        num_frames: int,
        num_clips: int,
        num_crops: int,
        short_side: int,
        crop_size: int,
        halve: Callable[[int], int] = half_up,
    ) -> None:
        self.records = records
        self.sampler = sampler
        self.open_video = open_video
        self.num_frames = num_frames
        self.num_clips = num_clips
        self.num_crops = num_crops
        self.short_side = short_side
        self.crop_size = crop_size
        self.halve = halve

    @property
    def protocol(self) -> str:
        """The protocol, such as `10x3 @256`: ten clips by three crops of 256 pixels."""
        scale = "" if self.short_side == self.crop_size else f" of short side {self.short_side}"
        return f"{self.num_clips}x{self.num_crops} @{self.crop_size}{scale}"

    def places(self, height: int, width: int) -> list[Place]:
        """Return the places of the crops in resized frames."""
        return spread_crops(height, width, self.crop_size, self.num_crops, self.halve)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, record: int) -> VideoViews:
        try:
            return self._views(record)
        except DecodeError as error:
            return VideoViews(record, torch.empty(0), [], [], str(error))

    def _views(self, record: int) -> VideoViews:
        with self.open_video(self.records[record]) as reader:
            return self.views_of(reader, record, 0, len(reader))

    def views_of(self, reader: Reader, record: int, first: int, end: int) -> VideoViews:
        """Return all views of frames [first, end) of a video. Raises DecodeError."""
        clips = [
            [first + index for index in clip]
            for clip in self.sampler.uniform_clips(
                Timeline(end - first, reader.fps), self.num_frames, self.num_clips
            )
        ]
        wanted = sorted({index for clip in clips for index in clip})
        frames = torch.empty(0, dtype=torch.uint8)
        for start in range(0, len(wanted), FRAMES_AT_ONCE):
            chunk = reader.read(wanted[start : start + FRAMES_AT_ONCE])
            chunk = resize(chunk, *short_side_size(chunk.shape[1], chunk.shape[2], self.short_side))
            if start == 0:
                frames = torch.empty(len(wanted), *chunk.shape[1:], dtype=torch.uint8)
            frames[start : start + len(chunk)] = chunk
        position = {index: p for p, index in enumerate(wanted)}
        crops = self.places(frames.shape[1], frames.shape[2])
        return VideoViews(record, frames, [[position[index] for index in clip] for clip in clips], crops, "")
