"""Convert decoded frames to timed, upright 8-bit 4:2:0 pictures of a given short side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from ..data.decode.picture import orientation
from ..data.decode.pyav import PyAVReader


def timed_frames(reader: PyAVReader) -> Iterator[VideoFrame]:
    """Yield all numbered frames in order, with times from 0."""
    stream: Any = reader.stream
    tick = 1 / reader.given_rate if reader.is_counted else stream.time_base
    seconds = reader.seconds
    for frame, time in zip(reader.frames(), seconds, strict=True):
        frame.pts, frame.time_base = round((time - seconds[0]) / tick), tick
        if reader.is_counted:
            frame.duration = 1
        yield frame


class Pictures:
    """Converts decoded frames to upright 8-bit 4:2:0 pictures of the right size. The first frame determines
    size and rotation.
    """

    def __init__(self, short_side: int) -> None:
        self._short_side = short_side
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None

    def convert(self, frame: VideoFrame) -> VideoFrame:
        if self._size is None:
            self._size = target_size(frame.height, frame.width, self._short_side)
            self.is_transposed, self._flip_rows, self._flip_columns = orientation(frame)
        height, width = self._size
        # RGB has no matrix or range to keep; without names, decoders would have to
        # guess them.
        named: dict[str, Any] = (
            {"dst_colorspace": "ITU601", "dst_color_range": "MPEG"} if frame.format.is_rgb else {}
        )
        picture = self._reformatter.reformat(
            frame, width, height, "yuv420p", interpolation="BICUBIC", threads=1, **named
        )
        if self.is_transposed or self._flip_rows or self._flip_columns:
            picture = self._turn(picture)
        picture.pts, picture.time_base, picture.duration = frame.pts, frame.time_base, frame.duration
        picture.pict_type = 0  # x264 would copy the source's keyframes
        return picture

    def _turn(self, picture: VideoFrame) -> VideoFrame:
        """Flip and transpose Y, U and V separately, since U and V have half as many rows and columns."""
        height, width = picture.height, picture.width
        planes = np.split(picture.to_ndarray().reshape(-1), [height * width, height * width * 5 // 4])
        turned = []
        for plane, half in zip(planes, (1, 2, 2), strict=True):
            grid = plane.reshape(height // half, width // half)
            grid = grid.T if self.is_transposed else grid
            turned.append(
                grid[:: -1 if self._flip_rows else 1, :: -1 if self._flip_columns else 1].reshape(-1)
            )
        result = VideoFrame.from_ndarray(
            np.concatenate(turned).reshape(-1, height if self.is_transposed else width), format="yuv420p"
        )
        result.color_range, result.colorspace = picture.color_range, picture.colorspace
        result.color_primaries, result.color_trc = picture.color_primaries, picture.color_trc
        return result


def target_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return an even (height, width) with this short side, or at most the source's."""
    if min(height, width) <= short_side:
        return max(2, height // 2 * 2), max(2, width // 2 * 2)
    scale = short_side / min(height, width)
    return round(height * scale / 2) * 2, round(width * scale / 2) * 2
