"""From a frame as FFmpeg decodes it to the upright picture."""

from __future__ import annotations

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
        return np.rot90(rows[:, : width * 3].reshape(height, width, 3), quarter_turns(frame))


def quarter_turns(frame: VideoFrame) -> int:
    """How often the frame is turned by 90 degrees, counterclockwise, to stand upright."""
    return round(frame.rotation / 90) % 4
