"""Extract videos to folders of JPEG frames, and write the lists that name them."""

from __future__ import annotations

import bisect
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import simplejpeg
import torch

from ..data.decode.pyav import PyAVReader
from ..data.decode.reader import DecodeError
from ..data.functional import resize, short_side_size
from ..runtime.errors import InputError, reason

FRAMES_AT_ONCE = 16  # full-size frames in memory at a time
QUALITY = 95
HALF = Fraction(1, 2)


class FrameJob(NamedTuple):
    """A video to extract into `folder`/`name`, via `partial`. `fps` 0: all frames; `short_side` 0: the
    original size.
    """

    video: str
    name: str
    folder: str
    partial: str
    fps: float
    short_side: int


class Extracted(NamedTuple):
    """The number of frames in a folder, and their rate; 0 if unknown."""

    num_frames: int
    fps: float


def extract_frames(job: FrameJob) -> Extracted | str:
    """Write `name`/`name`_000001.jpg and so on. Returns their number and rate, or why the video cannot be
    read.

    The folder appears when it is complete; an existing one is only counted. Raises InputError if writing
    fails.
    """
    final = Path(job.folder, job.name)
    if final.exists():
        num_frames = len(os.listdir(final))
        return Extracted(num_frames, _rate(job)) if num_frames else f"{final} is there, but empty"
    torch.set_num_threads(1)
    try:
        temporary = Path(job.partial, f"{job.name}-{uuid4().hex}")
        temporary.mkdir()
        try:
            extracted = _write_frames(job, temporary)
            os.rename(temporary, final)
            return extracted
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except DecodeError as error:
        return str(error)
    except OSError as error:
        raise InputError(
            f"cannot write {final}: {reason(error)}; make room and start again, what is extracted is kept"
        ) from error


def _rate(job: FrameJob) -> float:
    """Return the rate of frames that were extracted before."""
    if job.fps:
        return job.fps
    try:
        with PyAVReader(job.video) as reader:
            return reader.fps
    except DecodeError:
        return 0.0


def _write_frames(job: FrameJob, folder: Path) -> Extracted:
    with PyAVReader(job.video) as reader:
        indices = (
            resampled(reader.seconds, Fraction(job.fps).limit_denominator(1001))
            if job.fps
            else list(range(len(reader)))
        )
        indices = [min(index, len(reader) - 1) for index in indices]
        for first in range(0, len(indices), FRAMES_AT_ONCE):
            frames = reader.read(indices[first : first + FRAMES_AT_ONCE])
            height, width = frames.shape[1:3]
            if 0 < job.short_side < min(height, width):  # enlarging would only add bytes
                frames = resize(frames, *short_side_size(height, width, job.short_side))
            for number, frame in enumerate(frames, first + 1):
                jpeg = simplejpeg.encode_jpeg(frame.contiguous().numpy(), QUALITY, colorsubsampling="420")
                (folder / f"{job.name}_{number:06d}.jpg").write_bytes(jpeg)
        return Extracted(len(indices), job.fps or reader.fps)


def resampled(times: Sequence[Fraction], fps: Fraction) -> list[int]:
    """Times of frames in seconds -> the frame shown at each tick of `fps`, as with `ffmpeg -r`: frames are
    repeated or dropped.

    A frame is shown from the tick nearest to its time, the last one for the average duration of the others.
    """
    mean = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / fps
    ticks = [math.floor((time - times[0]) * fps + HALF) for time in times]
    end = max(1, math.floor((times[-1] - times[0] + mean) * fps + HALF))
    return [bisect.bisect_right(ticks, tick) - 1 for tick in range(end)]


def frame_rows(videos: Sequence[tuple[str, int]]) -> Iterator[str]:
    """(name, number of frames) of videos -> the lines of PySlowFast's list of frames."""
    yield "original_vido_id video_id frame_id path labels\n"
    for number, (name, num_frames) in enumerate(videos):
        for frame in range(num_frames):
            yield f'{name} {number} {frame} {name}/{name}_{frame + 1:06d}.jpg ""\n'
