"""Read frames of a video file with PyAV, exactly and with as little decoding as possible."""

from __future__ import annotations

import bisect
import math
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, islice

import torch
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from .container import VideoFile, VideoPacket
from .numbering import Keyframe, Numbering, fingerprint, number_frames
from .packet_index import PacketIndex
from .picture import Picture, orientation
from .reader import DecodeError

# Codecs whose packets say that no other frame needs them. HEVC says so only of frames in the same
# temporal layer; VP9 and AV1 do not say.
SAYS_UNREFERENCED = {"h264", "mpeg4"}


class SeekError(DecodeError):
    """A seek led to other frames than decoding from the start."""


class StrangePacketError(SeekError):
    """A seek led to packets that are not known."""


class OrderError(DecodeError):
    """Frames did not come in the order of their times."""


class PyAVReader:
    """Reads exact frames with FFmpeg in one thread (see VideoFile).

    The times of all packets, read without decoding, number the frames, at constant and variable rates, from
    the first decodable frame. To read a frame: seek to the keyframe before its time, decode on, and convert
    only the wanted frames. Frames that are neither wanted nor needed by others are not decoded. A seek is
    trusted only if it leads to known packets and the first frame is the keyframe; otherwise decoding starts
    at the beginning of the file. If packets do not determine the order of the frames (AVI with B-frames,
    joined recordings), all frames are decoded to number them.

    `index`: where packets are looked up, so that they need not be read, and noted. If a file has others, it
    is numbered anew.
    """

    def __init__(self, path: str, index: PacketIndex | None = None) -> None:
        self.path = path
        self._index = index
        self._is_looked_up = False  # whether its packets are those of the index, unread
        self.is_counted = False  # then the times are frame numbers
        self.num_unshown = 0  # frames at the start that need missing ones
        self._frames: Iterator[tuple[int, VideoFrame]] = iter(())
        self._position = math.inf  # the time of the last decoded frame; infinite: none
        self._wanted: set[int] = set()
        self._last_wanted: float = -math.inf
        self._video = VideoFile(path)
        try:
            self._number()
            self._picture = Picture(self.stream.width, self.stream.height)
        except BaseException:
            self._video.close()
            raise

    def __enter__(self) -> PyAVReader:
        return self

    def __exit__(self, *exception: object) -> None:
        # The generator refers to the reader; without the circle, the decoder's memory is free at once.
        self._frames = iter(())
        self._video.close()

    def __len__(self) -> int:
        return len(self._times)

    @property
    def fps(self) -> float:
        """See Reader. Computed from the times of the frames, or else the rate in the file."""
        span = self._times[-1] - self._times[0]
        if span and not self.is_counted and self.stream.time_base:
            return float((len(self) - 1) / (span * self.stream.time_base))
        return float(self.given_rate)

    @property
    def seconds(self) -> list[Fraction]:
        """The time of each frame, ascending; computed from the rate in the file if the times are unusable."""
        tick = None if self.is_counted else self.stream.time_base
        return [time * (tick or 1 / self.given_rate) for time in self._times]

    @property
    def orientation(self) -> tuple[bool, bool, bool]:
        """What makes the picture upright: transpose, then flip the rows, then the columns."""
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

    def frames(self) -> Iterator[VideoFrame]:
        """Yield all frames as decoded by FFmpeg; afterwards the reader does not seek any more."""
        self._keyframes.clear()
        self._wanted, self._last_wanted = set(self._times), math.inf
        for index in range(len(self)):
            yield self._frame(index)

    @property
    def stream(self) -> VideoStream:
        """The video stream."""
        return self._video.stream

    @property
    def given_rate(self) -> Fraction:
        """Frames per second according to the file."""
        return self.stream.average_rate or self.stream.guessed_rate or Fraction(30)

    def _number(self) -> None:
        """Number the frames by the packets in the index, or else by those in the file."""
        video = self._video
        known = self._index.find(video.path, video.version) if self._index else None
        numbering = number_frames(video, known) if known else None
        if numbering and _is_checked(numbering):
            self._is_looked_up = True
            self._use(numbering)
        else:
            self._number_anew(None)

    def _number_anew(self, expected: array[int] | None) -> None:
        """Number the frames by the packets in the file, and note these unless they are the expected ones."""
        self._is_looked_up = False
        found = self._video.scan()
        numbering = number_frames(self._video, found)
        if self._index and _is_checked(numbering) and numbering.fingerprints != expected:
            self._index.add(self._video.path, self._video.version, found)
        self._use(numbering)

    def _use(self, numbering: Numbering) -> None:
        """Determine the times of all frames, and the keyframes."""
        self._fingerprints, self._start = numbering.fingerprints, numbering.start
        self._times, self._keyframes = numbering.times or [], numbering.keyframes
        self._can_rewind = self._start is not None
        self._may_skip = self._video.codec in SAYS_UNREFERENCED
        self._is_closed = numbering.is_closed
        if numbering.times is None:
            self._count()
        elif numbering.num_doubtful:
            self._begin(numbering.num_doubtful)
        if not self._times:
            raise DecodeError("none of its frames can be decoded")

    def _count(self) -> None:
        """Number the frames in decoding order."""
        self.is_counted, self._can_rewind, self._may_skip, self._keyframes = True, False, False, []
        self._restart(None)
        self._times = [time for time, _ in self._frames]
        self._position = math.inf

    def _begin(self, num_frames: int) -> None:
        """Decode frames at the start, before any seek. Those before the first one need missing frames and are
        not numbered.
        """
        self._restart(None)
        try:
            times = [time for time, _ in islice(self._frames, num_frames)]
        except SeekError as error:
            if self._is_looked_up and isinstance(error, StrangePacketError):
                return self._scan_again()
            self._can_rewind = False
            return self._begin(num_frames)
        except OrderError:
            return self._count()
        except DecodeError:  # damaged; later frames may be fine
            times = self._times[:1]
        self._position = math.inf
        self.num_unshown = bisect.bisect_left(self._times, times[0]) if times else len(self._times)
        self._times = self._times[self.num_unshown :]
        return None

    def _restart(self, entry: Keyframe | None) -> None:
        """Go to a keyframe, or to the first packet."""
        self._entry = entry
        self._position = -math.inf
        if entry is not None:
            packets = self._packets_after_seek(entry.seek, entry.packet)
        elif self._can_rewind and self._start is not None:
            packets = self._packets_after_seek(self._start, 0)
        else:
            self._video.reopen()
            packets = self._video.packets()
        self._frames = self._decode(packets, entry)

    def _packets_after_seek(self, time: int, number: int) -> Iterator[VideoPacket]:
        """Yield packet `number` and the following ones. Raises SeekError if the file gives others."""
        expected: Iterator[int | None] = chain(islice(self._fingerprints, number, None), [None])
        try:
            self._video.seek(time)
        except DecodeError as error:
            raise StrangePacketError(str(error)) from error
        awaited, is_there = next(expected), False
        for packet in self._video.packets():
            if (fingerprint(packet) if packet.size else None) == awaited:
                yield packet
                awaited, is_there = next(expected, None), True
            elif is_there or not packet.size:
                raise StrangePacketError("a seek leads to other packets")

    def _decode(
        self, packets: Iterator[VideoPacket], entry: Keyframe | None
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Yield (time, frame). Raises SeekError if the first frame after a seek is not the keyframe (intra
        refresh), OrderError, and DecodeError.
        """
        number, last, has_keyframe = 0, -math.inf, False
        for packet in packets:
            has_keyframe |= packet.is_keyframe
            if self._may_skip:
                self.stream.codec_context.skip_frame = "NONREF" if self._is_unwanted(packet) else "DEFAULT"
            try:
                frames = self._video.decode(packet)
            except DecodeError:
                if has_keyframe:
                    raise
                continue  # a stream that begins in the middle
            for frame in frames:
                time = number if self.is_counted else frame.pts
                if time is None or time <= last:
                    raise OrderError("the times of its frames do not ascend")
                if entry and last < entry.time < time:
                    raise SeekError("decoding cannot begin at a keyframe")
                if frame.is_corrupt and (entry or self._may_skip):
                    # The decoder conceals the damage with the frames before it.
                    self._may_skip = False
                    self.stream.codec_context.skip_frame = "DEFAULT"
                    raise SeekError("a frame is damaged")
                yield time, frame
                number, last = number + 1, time

    def _is_unwanted(self, packet: VideoPacket) -> bool:
        """Frames after the last wanted one are decoded, as the next call may ask for them."""
        return packet.pts is not None and packet.pts not in self._wanted and packet.pts < self._last_wanted

    def _frame(self, index: int) -> VideoFrame:
        """Return frame `index`: decode from the current position or its keyframe; if that fails, from the
        first packet, from the reopened file, and without skipping.
        """
        time = self._times[index]
        before = bisect.bisect_right(self._keyframes, time, key=lambda keyframe: keyframe.time) - 1
        entry = self._keyframes[before] if before > 0 else None
        if time <= self._position or (entry and entry.time > self._position):
            self._restart(entry)
        while True:
            failure = None
            try:
                frame = self._advance(time)
                if frame is not None:
                    return frame
                if self._entry is None and not self._may_skip:
                    deque(self._frames, 0)  # raises OrderError if the frame comes too late
            except OrderError:
                return self._frame_in_order(index)
            except DecodeError as error:
                if self._is_looked_up and isinstance(error, StrangePacketError):
                    return self._frame_anew(index)
                failure = error
            if self._entry is not None:
                self._keyframes = [] if isinstance(failure, SeekError) else self._keyframes
            elif isinstance(failure, SeekError):
                self._can_rewind = False
            elif failure is None and self._may_skip:
                self._may_skip = False
                self.stream.codec_context.skip_frame = "DEFAULT"
            else:
                self._position = math.inf
                raise failure or DecodeError(f"frame {index} of {len(self)} cannot be decoded")
            self._restart(None)

    def _frame_anew(self, index: int) -> VideoFrame:
        """Return frame `index` of a file where seeks do not lead to the packets that were looked up."""
        times = self._times
        self._scan_again()
        if self._times != times:
            raise DecodeError("the index of its packets was wrong, and is put right; open it again")
        return self._frame(index)

    def _scan_again(self) -> None:
        self._video.reopen()
        self._position = math.inf
        self._number_anew(self._fingerprints)

    def _frame_in_order(self, index: int) -> VideoFrame:
        """Return frame `index` of a file whose times turned out to be unusable."""
        numbered = len(self)
        self._count()
        if len(self) != numbered:
            raise DecodeError(f"its times do not ascend, and it has {len(self)} frames, not {numbered}")
        return self._frame(index)

    def _advance(self, time: int) -> VideoFrame | None:
        """Decode up to the frame at `time`; None if it does not come."""
        for frame_time, frame in self._frames:
            self._position = frame_time
            if frame_time == time:
                return frame
            if frame_time > time:
                break
        return None


def _is_checked(numbering: Numbering) -> bool:
    """Whether a seek comes before each frame, and shows if the packets are others."""
    return numbering.times is not None and numbering.start is not None
