"""Strips: a few frames of the view that a network saw of a video, as small JPEG files."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from PIL import Image

from ..data.dataset import ViewDataset
from ..data.decode import DecodeError
from ..data.functional import cut, resize, short_side_size
from ..data.sampling import Timeline
from ..engine.aggregate import positions

FRAMES, SIZE = 8, 96  # of a strip; pixels


class Strip(NamedTuple):
    """JPEG files of some frames and their numbers in the video; none, and why, where they cannot be shown."""

    frames: list[bytes]
    indices: list[int]
    problem: str = ""


ReadStrip: TypeAlias = Callable[[int, str], Strip]
"""The number of a record and its name -> its strip."""


def no_strips(why: str) -> ReadStrip:
    """Return a function for videos that cannot be shown."""
    return lambda record, name: Strip([], [], why)


def strips_of(data: ViewDataset) -> ReadStrip:
    """Return a function that decodes frames of the centre clip and crop of a test's videos."""

    def read(record: int, name: str) -> Strip:
        if record >= len(data.records) or data.records[record].name != name:
            return Strip([], [], "the list has changed since the test")
        try:
            return _strip(data, record)
        except DecodeError as error:
            return Strip([], [], str(error))

    return read


def _strip(data: ViewDataset, record: int) -> Strip:
    with data.open_video(data.records[record]) as reader:
        clips = data.sampler.uniform_clips(Timeline(len(reader), reader.fps), data.num_frames, data.num_clips)
        (centre,) = positions(1, data.num_clips)
        clip = clips[centre]
        indices = [clip[i] for i in positions(min(FRAMES, len(clip)), len(clip))]
        wanted = sorted(set(indices))
        frames = reader.read(wanted)
    height, width = short_side_size(frames.shape[1], frames.shape[2], data.short_side)
    place = data.places(height, width)[data.num_crops // 2]
    seen = cut(resize(frames, height, width), place, data.crop_size)
    return Strip([_jpeg(Image.fromarray(seen[wanted.index(i)].numpy())) for i in indices], indices)


def _jpeg(picture: Image.Image) -> bytes:
    if picture.width > SIZE:
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()
