"""Read given frames of a video file with PyAV: exactly, and decoding as little as that allows."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

from ..runtime.storage import path_manager
from .reader import DecodeError


class PyAVReader:
    """Decodes with FFmpeg in one thread: many videos at once use the cores better than many threads for one.

    The times of all packets, read without decoding, number the frames exactly, at constant and at variable rates. From there a frame is
    found by its time: seek to the keyframe before it, decode on, convert the wanted frames alone. Where packets carry no usable times (old
    AVI files), frames are counted by decoding from the start.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._open()
        try:
            self._times, self._keyframes = self._scan()
            self._restart()
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> PyAVReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._container.close()

    def __len__(self) -> int:
        return len(self._times)

    @property
    def fps(self) -> float:
        """See Reader. From the times of the frames; where those are of no use, the rate that the file gives."""
        span = self._times[-1] - self._times[0]
        if span and not self._count_frames and self._stream.time_base:
            return float((len(self) - 1) / (span * self._stream.time_base))
        return float(self._stream.average_rate or self._stream.guessed_rate or 30)

    def read(self, indices: Sequence[int]) -> Tensor:
        """See Reader. Reading ascending frames in several calls costs no more than in one."""
        frames = {index: self._frame(index) for index in sorted(set(indices))}
        return torch.from_numpy(np.stack([frames[index] for index in indices]))

    def _scan(self) -> tuple[list[int], list[int]]:
        """The presentation times of all frames, and those of the keyframes, both ascending."""
        try:
            packets = [(packet.pts, packet.is_keyframe, packet.is_discard) for packet in self._container.demux(self._stream) if packet.size]
        except (OSError, ValueError) as error:
            raise DecodeError(_reason(error)) from error
        # The sample table of MP4 and MOV is exact, so fewer packets mean that the end of the file is missing.
        if "mp4" in self._container.format.name and len(packets) < self._stream.frames:
            raise DecodeError(f"it is truncated: {len(packets)} of {self._stream.frames} frames are there")
        shown = [(time, is_keyframe) for time, is_keyframe, is_discarded in packets if not is_discarded]
        times = sorted({time for time, _ in shown if time is not None})
        self._count_frames = len(times) < len(shown)
        if self._count_frames:
            self._restart()
            times = [index for index, _ in enumerate(self._decode())]
        if not times:
            raise DecodeError("it has no frames")
        keyframes = sorted(time for time, is_keyframe in shown if is_keyframe and time is not None)
        return times, [] if self._count_frames else keyframes

    def _open(self) -> None:
        try:
            self._container: InputContainer = av.open(path_manager.get_local_path(self.path))
        except (OSError, ValueError) as error:  # every FFmpeg error is one of these
            raise DecodeError(_reason(error)) from error
        if not self._container.streams.video:
            self._container.close()
            raise DecodeError("it has no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"
        self._stream.codec_context.thread_count = 1

    def _restart(self, time: int | None = None) -> None:
        """Stand before the first frame, or before the keyframe at `time`."""
        if time is None:
            self._container.close()
            self._open()
        else:
            self._container.seek(time, stream=self._stream)
        self._at_start = time is None
        self._position: float = -math.inf
        self._frames = self._decode()

    def _decode(self) -> Iterator[tuple[int, VideoFrame]]:
        """(time, frame) from here on; where times are of no use, the frame's number stands in for its time."""
        try:
            for number, frame in enumerate(self._container.decode(self._stream)):
                if self._count_frames:
                    yield number, frame
                elif frame.pts is not None:
                    yield frame.pts, frame
        except (OSError, ValueError) as error:
            raise DecodeError(_reason(error)) from error

    def _frame(self, index: int) -> np.ndarray:
        """Frame `index` as an (H, W, 3) array."""
        time = self._times[index]
        before = bisect.bisect_right(self._keyframes, time) - 1
        keyframe = self._keyframes[before] if before > 0 else None
        if time <= self._position or (keyframe is not None and keyframe > self._position):
            self._restart(keyframe)
        return self._convert(self._advance(time, index))

    def _advance(self, time: int, index: int) -> VideoFrame:
        for frame_time, frame in self._frames:
            self._position = frame_time
            if frame_time == time:
                return frame
            if frame_time > time:
                break
        if not self._at_start:  # the seek went past the frame: decode from the start
            self._restart()
            return self._advance(time, index)
        raise DecodeError(f"frame {index} of {len(self)} cannot be decoded")

    def _convert(self, frame: VideoFrame) -> np.ndarray:
        width, height = self._size = self._size or (frame.width, frame.height)
        return self._reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return str(strerror or error)
