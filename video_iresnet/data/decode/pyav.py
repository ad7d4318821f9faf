"""Read given frames of a video file with PyAV: exactly, and decoding as little as that allows."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from .container import VideoFile, VideoPacket
from .picture import Picture, orientation
from .reader import DecodeError

# In these, a packet itself says that no other frame needs it. HEVC says so only of frames in the same
# temporal layer; VP9 and AV1 do not say.
SAYS_UNREFERENCED = {"h264", "mpeg4"}


class PyAVReader:
    """Decodes with FFmpeg in one thread: many videos at once use the cores better than many threads for one.

    The times of all packets, read without decoding, number the frames exactly, at constant and at variable
    rates. From there a frame is found by its time: seek to the keyframe before it, decode on, convert the
    wanted frames alone. On the way, frames that are neither wanted nor needed by others are not decoded.
    Where packets carry no usable times (old AVI files), frames are counted by decoding from the start.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._wanted: set[int] = set()
        self._last_wanted: float = -math.inf
        self._position: float = (
            math.inf
        )  # the time of the frame decoded last; infinite where the decoder stands nowhere
        self._may_skip = False
        self._video = VideoFile(path)
        try:
            self._times, self._keyframes = self._scan()
            self._picture = Picture(self._stream.width, self._stream.height)
            self._may_skip = not self._count_frames and self._video.codec in SAYS_UNREFERENCED
        except BaseException:
            self._video.close()
            raise

    def __enter__(self) -> PyAVReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._video.close()

    def __len__(self) -> int:
        return len(self._times)

    @property
    def _stream(self) -> VideoStream:
        return self._video.stream

    @property
    def fps(self) -> float:
        """See Reader. From the times of the frames; where those are of no use, the rate the file gives."""
        span = self._times[-1] - self._times[0]
        if span and not self._count_frames and self._stream.time_base:
            return float((len(self) - 1) / (span * self._stream.time_base))
        return float(self._stream.average_rate or self._stream.guessed_rate or 30)

    @property
    def orientation(self) -> tuple[bool, bool, bool]:
        """What makes the picture of the file upright: transposing it, then flipping its rows, then its
        columns.
        """
        return orientation(self._frame(0))

    def read(self, indices: Sequence[int]) -> Tensor:
        """See Reader. Reading ascending frames in several calls costs little more than in one."""
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(index, []).append(place)
        self._wanted = {self._times[index] for index in places}
        self._last_wanted = max(self._wanted, default=-math.inf)
        frames = torch.empty(0)
        for index in sorted(places):
            picture = self._picture(self._frame(index))
            if not frames.numel():
                frames = torch.empty(len(indices), *picture.shape, dtype=torch.uint8)
            for place in places[index]:
                frames.numpy()[place] = picture
        return frames

    def _scan(self) -> tuple[list[int], list[int]]:
        """The presentation times of all frames, and those of the keyframes, both ascending."""
        packets = self._video.scan()
        packets = [packet for packet in packets if packet.size]
        self._first = packets[0] if packets else None
        shown = [packet for packet in packets if not packet.is_discard]
        times = sorted({packet.pts for packet in shown if packet.pts is not None})
        # AVI has no presentation times; FFmpeg's guess of them is wrong for H.264 with B-frames.
        avi_h264 = self._video.format == "avi" and self._video.codec == "h264"
        self._count_frames = avi_h264 or len(times) < len(shown)
        if self._count_frames:
            times = self._count()
        if not times:
            raise DecodeError("it has no frames")
        keyframes = sorted(packet.pts for packet in shown if packet.is_keyframe and packet.pts is not None)
        return times, [] if self._count_frames else keyframes

    def _count(self) -> list[int]:
        """The numbers of all frames that can be decoded."""
        return [number for number, _ in self._decode(self._packets_from_start())]

    def _restart(self, time: int | None = None) -> None:
        """Stand before the first frame, or before the keyframe at `time`."""
        self._at_start = time is None
        self._position = -math.inf
        if time is None:
            packets = self._packets_from_start()
        else:
            self._video.seek(time)
            packets = self._video.packets()
        self._frames = self._decode(packets)

    def _packets_from_start(self) -> Iterator[VideoPacket]:
        """By a seek where that leads to the first packet, else by opening the file again, which takes as long
        as ten frames.
        """
        if self._first and self._first.pts is not None and not self._count_frames:
            self._video.seek(self._first.pts)
            packets = self._video.packets()
            packet = next(packets)
            if (packet.pts, packet.pos) == (self._first.pts, self._first.pos):
                return chain([packet], packets)
        self._video.reopen()
        return self._video.packets()

    def _decode(self, packets: Iterator[VideoPacket]) -> Iterator[tuple[int, VideoFrame]]:
        """(time, frame) from here on; where times are of no use, the frame's number stands for its time."""
        number = 0
        for packet in packets:
            if self._may_skip:
                self._stream.codec_context.skip_frame = "NONREF" if self._is_unwanted(packet) else "DEFAULT"
            for frame in self._video.decode(packet):
                if self._count_frames:
                    yield number, frame
                elif frame.pts is not None:
                    yield frame.pts, frame
                number += 1

    def _is_unwanted(self, packet: VideoPacket) -> bool:
        """Frames after the last wanted one are decoded whole, because the next call may ask for them."""
        return packet.pts is not None and packet.pts not in self._wanted and packet.pts < self._last_wanted

    def _frame(self, index: int) -> VideoFrame:
        """Frame `index`, by decoding from where the reader stands or from its keyframe; where that fails,
        from the start, then without skips.
        """
        time = self._times[index]
        before = bisect.bisect_right(self._keyframes, time) - 1
        keyframe = self._keyframes[before] if before > 0 else None
        if time <= self._position or (keyframe is not None and keyframe > self._position):
            self._restart(keyframe)
        frame = self._advance(time)
        while frame is None and (self._may_skip or not self._at_start):
            if self._at_start:
                self._may_skip = False
                self._stream.codec_context.skip_frame = "DEFAULT"
            self._restart()
            frame = self._advance(time)
        if frame is None:
            raise DecodeError(f"frame {index} of {len(self)} cannot be decoded")
        return frame

    def _advance(self, time: int) -> VideoFrame | None:
        """Decode on to the frame at `time`; None where it does not come."""
        for frame_time, frame in self._frames:
            self._position = frame_time
            if frame_time == time:
                return frame
            if frame_time > time:
                break
        return None
