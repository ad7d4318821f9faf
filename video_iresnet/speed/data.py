"""The cost of training samples and test views, stage by stage, against the plain way of other projects."""

from __future__ import annotations

import bisect
import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .. import build
from ..config import Config
from ..data.dataset import ClipDataset, SampleKey, ViewDataset
from ..data.decode.reader import DecodeError, Reader
from ..data.functional import cut, short_side_size
from ..data.loader import collate_clips
from ..data.records import Record
from ..data.sampling import Timeline
from ..runtime.seeding import Stream, generator

STAGES = ("open and scan", "decode and convert", "crop, flip, augment", "collate")


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds.setdefault(stage, []).append(time.perf_counter() - begin)

    def milliseconds(self, stage: str) -> float:
        """Return the median."""
        return 1000 * statistics.median(self.seconds[stage])


def plain_clip(path: str, indices: Sequence[int]) -> Tensor:
    """Read (T, H, W, 3) frames the plain way: seek to the first one, convert every frame up to the last one,
    then select.
    """
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        assert stream.average_rate is not None
        assert stream.time_base is not None
        rate, unit = float(stream.average_rate), stream.time_base
        start = stream.start_time or 0
        container.seek(start + round(indices[0] / rate / unit), stream=stream)
        numbers, frames = [], []
        for frame in container.decode(stream):
            assert frame.pts is not None
            number = round(float((frame.pts - start) * unit) * rate)
            if number >= indices[0]:
                numbers.append(number)
                frames.append(frame.reformat(format="rgb24", threads=1).to_ndarray())
            if number >= indices[-1]:
                break
    chosen = [min(bisect.bisect_left(numbers, index), len(numbers) - 1) for index in indices]
    return torch.from_numpy(np.stack(frames))[chosen]


def plain_sample(
    path: str,
    indices: Sequence[int],
    short_side: int,
    size: int,
    position: tuple[float, float] | tuple[int, int],
) -> Tensor:
    """Make a training sample or a test view the plain way: float, normalize full frames, resize, crop at
    (top, left), or at fractions of the room.
    """
    clip = plain_clip(path, indices).float() / 255
    clip = ((clip - 0.45) / 0.225).permute(3, 0, 1, 2)
    height, width = clip.shape[2:]
    resized = short_side_size(height, width, short_side)
    clip = F.interpolate(clip, resized, mode="bilinear", align_corners=False)
    top, left = (
        int(c * (length - size)) if isinstance(c, float) else c
        for c, length in zip(position, clip.shape[2:], strict=True)
    )
    return clip[:, :, top : top + size, left : left + size].contiguous()


def training_sample(data: ClipDataset, record: Record, cfg: Config, draw: int, watch: Stopwatch) -> None:
    """Time a sample of the data set by stage, and its collation."""
    watched = copy.copy(data)
    watched.records = [record]

    def open_video(record: Record) -> Reader:
        with watch(STAGES[0]):
            reader = data.open_video(record)
        read = reader.read

        def timed(indices: Sequence[int]) -> Tensor:
            with watch(STAGES[1]):
                return read(indices)

        reader.read = timed  # type: ignore[method-assign]
        return reader

    watched.open_video = open_video
    with watch("sample"):
        sample = watched[SampleKey(draw, 0, *build.batch_shape(cfg)[1:])]
    total, opening, reading = (watch.seconds[stage][-1] for stage in ("sample", *STAGES[:2]))
    watch.seconds.setdefault(STAGES[2], []).append(total - opening - reading)
    with watch(STAGES[3]):
        collate_clips([sample])


def length_and_rate(data: ClipDataset, record: Record) -> Timeline:
    with data.open_video(record) as reader:
        return Timeline(len(reader), reader.fps)


def compare_samples(
    data: ClipDataset, records: dict[str, Record], cfg: Config, repeats: int
) -> dict[str, Stopwatch]:
    """Time a training sample of each version of a video, in turn, so that changes of the machine's speed
    affect all.
    """
    watches = {name: Stopwatch() for name in records}
    original = records["plain"]
    timeline = length_and_rate(data, original)
    for draw in tqdm(range(repeats), desc=f"samples of {original.name}", leave=False):
        for name, record in records.items():
            if name == "plain":
                rng = generator(cfg.RNG_SEED, Stream.SAMPLE, draw, 0)
                indices = data.sampler.random_clip(
                    timeline, cfg.DATA.NUM_FRAMES, rng, cfg.DATA.TRAIN_JITTER_RATE
                )
                with watches[name]("sample"):
                    plain_sample(
                        record.path,
                        indices,
                        int(rng.integers(256, 321)),
                        cfg.DATA.TRAIN_CROP_SIZE,
                        (rng.random(), rng.random()),
                    )
            else:
                training_sample(data, record, cfg, draw, watches[name])
    return watches


def compare_folders(cfg: Config, folders: Sequence[str], samples: int) -> dict[str, tuple[float, int]]:
    """Return milliseconds for a training sample from each DATA.PATH_TO_DATA_DIR, and how many of the samples
    are those of the first folder.

    The folders take turns, so that changes of the machine's speed affect all. Raises DecodeError.
    """
    sets = []
    for folder in folders:
        cfg.DATA.PATH_TO_DATA_DIR = folder
        sets.append(build.build_training_data(cfg, build.build_records(cfg, "DATA.TRAIN_LIST")))
    times: list[list[float]] = [[] for _ in folders]
    equal = [0 for _ in folders]
    for draw in tqdm(range(samples), leave=False, disable=None):
        # Each video once, before any comes again, from all over the list.
        record = draw * 7919 % len(sets[0])
        key = SampleKey(draw, record, *build.batch_shape(cfg)[1:])
        clips = [torch.empty(0) for _ in folders]
        for turn in range(len(folders)):
            number = (draw + turn) % len(folders)
            begin = time.perf_counter()
            sample = sets[number][key]
            times[number].append(1000 * (time.perf_counter() - begin))
            if sample.failures:
                raise DecodeError(sample.failures[0].reason)
            clips[number] = torch.stack(sample.clips)
        for number, clip in enumerate(clips):
            equal[number] += torch.equal(clip, clips[0])
    return {
        folder: (statistics.median(some), same)
        for folder, some, same in zip(folders, times, equal, strict=True)
    }


def compare_tests(cfg: Config, records: dict[str, Record], repeats: int) -> dict[str, float]:
    """Return milliseconds for all views of a video, with separate decodings and with one."""
    results: dict[str, list[float]] = {}
    for _ in tqdm(range(repeats), desc=f"test views of {records['plain'].name}", leave=False):
        for name, record in records.items():
            data = build.build_test_data(cfg, [record])
            begin = time.perf_counter()
            if name == "plain":
                for _ in plain_views(data, record):
                    pass
            else:
                views = data[0]
                for clip in views.clips:
                    for place in views.crops:
                        cut(views.frames, place, data.crop_size)[clip]
            results.setdefault(name, []).append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in results.items()}


def plain_views(data: ViewDataset, record: Record) -> Iterator[Tensor]:
    """Yield the views of a test video, (3, T, S, S) normalized floats, each from a decoding of its own."""
    with data.open_video(record) as reader:
        timeline = Timeline(len(reader), reader.fps)
    clips = data.sampler.uniform_clips(timeline, data.num_frames, data.num_clips)
    size = short_side_size(*av_size(record.path), data.short_side)
    for clip in clips:
        for top, left, _ in data.places(*size):
            yield plain_sample(record.path, clip, data.short_side, data.crop_size, (top, left))


def av_size(path: str) -> tuple[int, int]:
    with av.open(path) as container:
        return container.streams.video[0].height, container.streams.video[0].width
