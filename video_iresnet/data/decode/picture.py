"""From a frame as FFmpeg decodes it to the upright picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter


class Picture:
    """Converts the frames of one video, which are shown at one size whatever the size of a single one."""

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """The upright (H, W, 3) uint8 RGB picture, a view of FFmpeg's memory."""
        width, height = self._size
        plane = self._reformatter.reformat(frame, width, height, "rgb24", threads=1).planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        picture = rows[:, : width * 3].reshape(height, width, 3)
        is_transposed, flip_rows, flip_columns = orientation(frame)
        picture = picture.transpose(1, 0, 2) if is_transposed else picture
        return picture[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, then flip the rows, then flip the columns) makes the picture upright, to the nearest
    quarter turn.

    FFmpeg's display matrix says where a stored (x, y) is shown: at (a x + c y, b x + d y).
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return True, b < 0, c < 0
    return False, d < 0, a < 0
