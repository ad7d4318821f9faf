"""Open a video that someone sent: refuse what is no video, or would take too much time or memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..data.decode.container import PacketInfo, VideoFile, check_regular
from ..data.decode.pyav import PyAVReader
from ..data.decode.reader import DecodeError
from ..runtime.errors import InputError, reason

MEGABYTE = 2**20
LARGEST_PICTURE = 4096 * 2304  # pixels
# Pixels to decode per second of the largest duration: 1920x1080 at 60 frames a second.
PIXELS_PER_SECOND = 1920 * 1080 * 60
ROUNDING = 0.1  # seconds that a video may be longer, as cameras stop at no exact time


@dataclass(frozen=True)
class Limits:
    """The largest file in MiB and the longest video in seconds. The frames of a video may have as many pixels
    in all as 1920x1080 at 60 frames a second of that duration.
    """

    megabytes: float = 100.0
    seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, value in (("megabytes", self.megabytes), ("seconds", self.seconds)):
            if not 0 < value < float("inf"):
                raise InputError(f"the limit of {value} {name} is no positive number")


def open_upload(path: str, limits: Limits) -> PyAVReader:
    """Open a video within limits. Nothing is decoded before its size, format, number of pixels and the times
    of its packets are known to be within them. Raises DecodeError with a sentence for the one who sent it.
    """
    try:
        status = os.lstat(path)
    except OSError as error:
        raise DecodeError(f"the file cannot be read: {reason(error)}") from error
    try:
        check_regular(status)
    except DecodeError as error:
        raise DecodeError(f"this file is no video that can be read: {error}") from error
    if status.st_size > limits.megabytes * MEGABYTE:
        raise DecodeError(
            f"the file has {status.st_size / MEGABYTE:.1f} MB; at most {limits.megabytes:g} MB are allowed"
        )
    try:
        with VideoFile(path) as video:
            width, height = video.stream.width, video.stream.height
            packets = video.scan().all
            tick = float(video.stream.time_base or 0)
    except DecodeError as error:
        raise DecodeError(f"this file is no video that can be read: {error}") from error
    _check_size(width, height, len(packets), limits)
    _check_duration(_span(packets) * tick, limits)
    try:
        reader = PyAVReader(path)
    except DecodeError as error:
        raise DecodeError(f"this video cannot be decoded: {error}") from error
    try:
        seconds = reader.seconds
        _check_duration(float(seconds[-1] - seconds[0]), limits)
    except BaseException:
        reader.__exit__()
        raise
    return reader


def _span(packets: Sequence[PacketInfo]) -> int:
    """Return the time from the first to the last picture, as far as the packets know it."""
    times = [packet.pts for packet in packets if packet.pts is not None]
    return max(times, default=0) - min(times, default=0)


def _check_size(width: int, height: int, frames: int, limits: Limits) -> None:
    if not frames or not width or not height:
        raise DecodeError("this file is no video that can be read: it has no frames")
    if width * height > LARGEST_PICTURE:
        raise DecodeError(
            f"its pictures have {width}x{height} pixels; at most {LARGEST_PICTURE:,} pixels are allowed"
        )
    if width * height * frames > limits.seconds * PIXELS_PER_SECOND:
        raise DecodeError(
            f"{frames} frames of {width}x{height} are too many pixels; send a shorter or a smaller video"
        )


def _check_duration(seconds: float, limits: Limits) -> None:
    if seconds > limits.seconds + ROUNDING:
        raise DecodeError(
            f"the video takes {seconds:.1f} seconds; at most {limits.seconds:g} seconds are allowed"
        )
