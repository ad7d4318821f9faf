"""Open and demux video files with FFmpeg, and detect truncated ones."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import BinaryIO, NamedTuple, TypeAlias, cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ...runtime.errors import InputError, reason
from ...runtime.ranges import Input, Version, is_ranged, open_bytes, open_range
from ...runtime.storage import path_manager
from . import h264
from .reader import DecodeError, NoVideoError, TruncatedError

VideoPacket: TypeAlias = "Packet[VideoStream]"

# FFmpeg's names of the formats that are read. None of them opens another file, as playlists, scripts
# (ffconcat) and patterns of image files do.
VIDEO_FORMATS = (
    "mov,matroska,avi,asf,flv,mpegts,mpeg,mpegvideo,h261,h263,h264,hevc,vvc,m4v,vc1,cavsvideo,obu,av1,ivf,"
    "ogg,gif,mxf,nut,rm,dv,wtv,swf,mjpeg,yuv4mpegpipe"
)
# Recognized only for the error message.
IMAGE_FORMATS = sorted(name for name in av.formats_available if name.endswith("_pipe"))
# Codecs of still images: next to another video stream, such a stream is a cover.
STILL_CODECS = {"png", "apng", "mjpeg", "gif", "bmp", "webp", "tiff", "jpegxl", "jpeg2000"}
NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
KINDS_OF_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
}
MATROSKA_SEGMENT = 0x18538067  # the element that contains everything after the header


class PacketInfo(NamedTuple):
    """The stored fields of a packet; times in units of the stream's time base."""

    pts: int | None
    dts: int | None
    duration: int
    pos: int | None
    size: int
    is_keyframe: bool
    is_discard: bool
    is_corrupt: bool
    is_idr: bool  # H.264: no frame after this keyframe needs one before it

    @classmethod
    def of(cls, packet: VideoPacket, *, is_idr: bool) -> PacketInfo:
        return cls(
            packet.pts,
            packet.dts,
            packet.duration or 0,
            packet.pos,
            packet.size,
            packet.is_keyframe,
            packet.is_discard,
            packet.is_corrupt,
            is_idr,
        )


class Packets(NamedTuple):
    """What a file's packets are, in its order, without empty ones; `x264`: the build of x264 that the first
    one names, if it does.
    """

    all: list[PacketInfo]
    x264: int | None


@contextmanager
def decode_errors() -> Iterator[None]:
    """Raise DecodeError for every failure of FFmpeg and PyAV in the block. Many of FFmpeg's errors are plain
    FFmpegErrors, not OSErrors or ValueErrors. InputErrors, of a store that cannot be read, stay.
    """
    try:
        yield
    except InputError:
        raise
    except (av.FFmpegError, OSError, ValueError, LookupError, ArithmeticError) as error:
        raise DecodeError(reason(error)) from error


class VideoFile:
    """A video file, decoded in one thread: with many videos at once, that is more efficient than many threads
    per video. Raises DecodeError for every failure.

    `stream` is FFmpeg's best video stream, never a cover. The path is that of a file of this machine, or one
    that is read in ranges, whose failures other than a missing file are raised as they are: they say nothing
    of the video. No other file is opened.
    """

    def __init__(self, path: str) -> None:
        self._file: Input | None = None  # that the container reads from, unless it opens a path
        self.path, self.is_ranged = path, is_ranged(path)
        if not self.is_ranged:
            with decode_errors():
                self.path = path_manager.get_local_path(path)
                status = os.stat(self.path)
                check_regular(status)
                self.version = Version(status.st_size, str(status.st_mtime_ns))
        self.reopen()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def format(self) -> str:
        """FFmpeg's short name of the container format, such as mov (also for MP4), matroska or avi."""
        return self.container.format.name.split(",")[0]

    @property
    def codec(self) -> str:
        return self.stream.codec_context.name

    def reopen(self) -> None:
        """Open the file again, with a new decoder."""
        self.close()
        if self.is_ranged:
            with decode_errors():
                file = open_range(self.path)
            self._file, self.version = Input(file), file.version
        with self._reading():
            self.container = _open(self._file or self.path)
        try:
            with self._reading():
                self.stream = video_stream(self.container)
                self.stream.thread_type = "NONE"
                self.stream.codec_context.thread_count = 1
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if hasattr(self, "container"):
            self.container.close()
        if self._file is not None:
            self._file.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raise what went wrong in reading: FFmpeg takes it for the end of the file, or for damage."""
        with decode_errors():
            try:
                yield
            finally:
                if self._file is not None:
                    self._file.check()

    def seek(self, time: int) -> None:
        """Seek to a keyframe at or before `time`, as far as FFmpeg finds one."""
        with self._reading():
            self.container.seek(time, stream=self.stream)

    def packets(self) -> Iterator[VideoPacket]:
        """Yield the packets from the current position. The last one is empty and flushes the decoder."""
        last = None
        for packet in self._demux():
            if packet.size:
                yield packet
            last = packet
        if last is not None:
            yield last

    def scan(self) -> Packets:
        """Read a file that was just opened to its end. Raises TruncatedError if the end is missing."""
        packets: list[PacketInfo] = []
        head = b""
        is_h264, extradata = self.codec == "h264", self.stream.codec_context.extradata
        for packet in self._demux():
            head = head or bytes(packet)
            is_idr = is_h264 and packet.is_keyframe and h264.is_idr(bytes(packet), extradata)
            packets.append(PacketInfo.of(packet, is_idr=is_idr))
        packets.pop()  # PyAV's end marker
        missing = missing_end(self, packets)
        if missing:
            raise TruncatedError(missing)
        return Packets([packet for packet in packets if packet.size], h264.x264_build(head))

    def _demux(self) -> Iterator[VideoPacket]:
        """Yield the packets from the current position, including empty ones and PyAV's empty end marker."""
        packet = None
        # PyAV leaks memory where this generator is abandoned and not closed.
        found = cast("Generator[VideoPacket]", self.container.demux(self.stream))
        with self._reading(), closing(found):
            try:
                for packet in found:
                    if self._file is not None and self._file.error is not None:
                        break
                    yield packet
            except IndexError:
                # After the end marker, if a stream appeared within a TS file, which PyAV does not support.
                if packet is None or packet.size:
                    raise

    def decode(self, packet: VideoPacket) -> list[VideoFrame]:
        with decode_errors():
            return packet.decode()

    def frames(self) -> Iterator[VideoFrame]:
        """Yield the frames from the current position, in decoding order."""
        for packet in self.packets():
            yield from self.decode(packet)


def check_regular(status: os.stat_result) -> None:
    """Raise DecodeError if it is not a regular file: reading a pipe or a device might never end."""
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise DecodeError(f"it is {KINDS_OF_FILES.get(kind, 'something else')}, not a file")


def video_stream(container: InputContainer) -> VideoStream:
    """Return FFmpeg's best video stream, but no attached picture, nor a still image next to another one."""
    streams = [s for s in container.streams.video if not s.disposition & NO_VIDEO]
    if not streams:
        others = {"cover picture" if s.type == "video" else s.type for s in container.streams}
        raise NoVideoError(f"it has no video stream, only {', '.join(sorted(others)) or 'nothing'}")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise DecodeError("FFmpeg does not know the codec of its video stream")
    moving = [s for s in known if not (s.codec_context.name in STILL_CODECS or s.frames == 1)] or known
    best = container.streams.best("video")
    return next((stream for stream in moving if best and stream.index == best.index), moving[0])


def missing_end(video: VideoFile, packets: Sequence[PacketInfo]) -> str:
    """Return why the end of a file is missing, judging by its container and all of its packets; empty if it
    is complete. MPEG-TS, MPEG-PS, FLV and unfinished recordings do not show it.
    """
    if video.format == "mov":
        # The table is exact even if an edit list removes frames; `stream.frames` is not.
        there, claimed = len(packets), len(video.stream.index_entries)
        if there < claimed:
            return f"it is truncated: {there} of {claimed} frames are there"
    elif video.format == "avi":
        # Times count dropped frames, which have no packets. Some writers claim a few frames too many.
        claimed = video.stream.frames
        end = max((packet.dts + 1 for packet in packets if packet.dts is not None), default=0)
        if end < claimed and (claimed - end > max(2, claimed // 100) or missing_bytes(video.path)):
            return f"it is truncated: {end} of {claimed} frames are there"
    elif video.format == "matroska":
        missing = missing_bytes(video.path)
        if missing:
            return f"it is truncated: the last {missing} bytes are missing"
        end_time, claimed_time = _last_seconds(video, packets), _claimed_seconds(video)
        if end_time < claimed_time - max(0.25, 0.02 * claimed_time):
            return f"it is truncated: the last frame ends at {end_time:.2f} s of {claimed_time:.2f} s"
    if packets and packets[-1].is_corrupt:
        return f"it is truncated: it ends within frame {len(packets) - 1}"
    return ""


def missing_bytes(path: str) -> int:
    """Return how many bytes are missing from a Matroska, WebM or AVI file according to its headers; 0 if
    these say "unknown", as in live recordings, and for other files.
    """
    with decode_errors(), open_bytes(path) as file:
        end = _riff_end(file) if file.read(4) == b"RIFF" else _segment_end(file)
        return max(0, end - file.seek(0, os.SEEK_END))


def _open(source: str | Input) -> InputContainer:
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join([VIDEO_FORMATS, *IMAGE_FORMATS])}
    try:
        # The explicit protocol allows names such as 12:30.mp4.
        file = source if isinstance(source, Input) else f"file:{source}"
        container = av.open(file, mode="r", container_options=options, metadata_errors="replace")
    except av.ArgumentError as error:
        raise DecodeError("it is not a video, or of a format that is not read") from error
    name = container.format.name
    if name in IMAGE_FORMATS:
        container.close()
        raise DecodeError(f"it is an image ({name.removesuffix('_pipe')}), not a video")
    return container


def _last_seconds(video: VideoFile, packets: Sequence[PacketInfo]) -> float:
    ends = [packet.pts + packet.duration for packet in packets if packet.pts is not None]
    return float(max(ends, default=0) * (video.stream.time_base or 0))


def _claimed_seconds(video: VideoFile) -> float:
    """Return the end time of the video in a Matroska file in seconds; 0 if unknown."""
    tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", video.stream.metadata.get("DURATION", ""))
    if tag:
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
    # The container's duration is that of the longest stream.
    return (video.container.duration or 0) / av.time_base if len(video.container.streams) == 1 else 0


def _riff_end(file: BinaryIO) -> int:
    """Return the end of the last RIFF chunk; 0 if unknown. AVI files over 1 GB have several."""
    end, kind = 0, b"RIFF"
    while kind == b"RIFF":
        size = int.from_bytes(file.read(4), "little")
        if not size:
            return 0
        end = file.seek(size + size % 2, os.SEEK_CUR)
        kind = file.read(4)
    return end - size % 2


def _segment_end(file: BinaryIO) -> int:
    """Return the end of the Segment of a Matroska file; 0 if unknown."""
    file.seek(0)
    _ebml_number(file, keep_marker=True)
    header_size = _ebml_number(file)
    file.seek(header_size or 0, os.SEEK_CUR)
    if _ebml_number(file, keep_marker=True) != MATROSKA_SEGMENT:
        return 0
    size = _ebml_number(file)
    return 0 if size is None else file.tell() + size


def _ebml_number(file: BinaryIO, *, keep_marker: bool = False) -> int | None:
    """Read an EBML number: the zeros before the first 1 give the number of following bytes. None if all other
    bits are ones, which means unknown.
    """
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1), "big")
    marker = 1 << 7 * length
    if keep_marker:
        return value
    return None if value == 2 * marker - 1 else value - marker
