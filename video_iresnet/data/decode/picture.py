"""Convert decoded frames to upright RGB pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

# swscale converts these with tables and the nearest chroma sample, identically in all releases of FFmpeg.
TABLES = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p"}
# SWS_BILINEAR, SWS_FULL_CHR_H_INT and SWS_ACCURATE_RND of libswscale/swscale.h: chroma is interpolated by its
# siting, in both directions, and of interlaced frames by field.
ACCURATE = 0x2 | 0x2000 | 0x40000


class Picture:
    """Converts the frames of one video, all to the same size.

    Frames that are not plain are converted as exactly as 8 bits allow.
    """

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """Return the upright (H, W, 3) uint8 RGB picture, a view of FFmpeg's memory."""
        width, height = self._size
        plane = self._converted(frame).planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        picture = rows[:height, : width * 3].reshape(height, width, 3)
        is_transposed, flip_rows, flip_columns = orientation(frame)
        picture = picture.transpose(1, 0, 2) if is_transposed else picture
        return picture[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]

    def _converted(self, frame: VideoFrame) -> VideoFrame:
        width, height = self._size
        if is_plain(frame):
            return self._reformatter.reformat(frame, width, height, "rgb24", threads=1)
        if _needs_padding(frame) and (frame.width, frame.height) == self._size:
            frame = _padded(frame)
            width, height = frame.width, frame.height
        return self._reformatter.reformat(frame, width, height, "rgb24", interpolation=ACCURATE, threads=1)


def is_plain(frame: VideoFrame) -> bool:
    """Whether all releases of FFmpeg convert the frame identically."""
    return not peculiarity(frame)


def peculiarity(frame: VideoFrame) -> str:
    """Return why releases of FFmpeg convert the frame differently; empty if they do not."""
    if frame.format.name not in TABLES:
        return f"pixels of {frame.format.name}"
    if frame.interlaced_frame:
        return "interlaced"
    return "an odd height" if frame.height % 2 else ""


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Return (transpose, then flip rows, then flip columns), which makes the picture upright, to the nearest
    quarter turn.

    FFmpeg's display matrix maps a stored (x, y) to (a x + c y, b x + d y).
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _needs_padding(frame: VideoFrame) -> bool:
    """Whether swscale would stretch the chroma, which has half a sample more than the luma."""
    halves_width, halves_height = (
        size(2) < 2 for size in (frame.format.chroma_width, frame.format.chroma_height)
    )
    odd = (halves_width and frame.width % 2) or (halves_height and frame.height % 2)
    return bool(odd) and frame.format.is_planar and not frame.interlaced_frame


def _padded(frame: VideoFrame) -> VideoFrame:
    """Return the frame with even sizes: the same chroma, and an additional row and column of luma of any
    value.
    """
    padded = VideoFrame(frame.width + frame.width % 2, frame.height + frame.height % 2, frame.format.name)
    padded.colorspace, padded.color_range = frame.colorspace, frame.color_range
    for source, target in zip(frame.planes, padded.planes, strict=True):
        rows, wide = (
            np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
            for plane in (source, target)
        )
        used = min(source.line_size, target.line_size)
        wide[: len(rows), :used] = rows[:, :used]
    return padded
