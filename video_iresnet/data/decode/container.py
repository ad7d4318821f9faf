"""Open and demux video files: the one place where FFmpeg meets a file, and the one rule for a missing end."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, TypeAlias

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ...runtime.errors import reason
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
# Recognised only to be named in the error.
IMAGE_FORMATS = sorted(name for name in av.formats_available if name.endswith("_pipe"))
# Codecs of still pictures: one of these beside another video stream is its cover.
STILL_CODECS = {"png", "apng", "mjpeg", "gif", "bmp", "webp", "tiff", "jpegxl", "jpeg2000"}
NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
KINDS_OF_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
}
MATROSKA_SEGMENT = 0x18538067  # the element that holds everything after the file's header


class PacketInfo(NamedTuple):
    """What is kept of a packet. Times in units of the stream's time base."""

    pts: int | None
    dts: int | None
    duration: int
    pos: int | None
    size: int
    is_keyframe: bool
    is_discard: bool
    is_corrupt: bool
    is_idr: bool  # of H.264: a keyframe behind which nothing needs what stood before it

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


@contextmanager
def decode_errors() -> Iterator[None]:
    """Turn every failure of FFmpeg and PyAV in the block into a DecodeError. Many of FFmpeg's errors are
    FFmpegError alone, no OSError or ValueError.
    """
    try:
        yield
    except (av.FFmpegError, OSError, ValueError, LookupError, ArithmeticError) as error:
        raise DecodeError(reason(error)) from error


class VideoFile:
    """A regular file of a video format, open to be decoded in one thread: many videos at once use the cores
    better than many threads for one. Every failure is a DecodeError.

    `stream` is FFmpeg's best video stream, never a cover picture. The file is opened as a file, whatever its
    name looks like, and opens no other file.
    """

    def __init__(self, path: str) -> None:
        with decode_errors():
            self.path = path_manager.get_local_path(path)
            check_regular(os.stat(self.path))
        self.reopen()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def format(self) -> str:
        """FFmpeg's short name of the container's format, such as mov (also for MP4), matroska or avi."""
        return self.container.format.name.split(",")[0]

    @property
    def codec(self) -> str:
        return self.stream.codec_context.name

    def reopen(self) -> None:
        """Stand before the first packet, with a decoder that has seen nothing."""
        self.close()
        with decode_errors():
            self.container = _open(self.path)
        try:
            with decode_errors():
                self.stream = video_stream(self.container)
                self.stream.thread_type = "NONE"
                self.stream.codec_context.thread_count = 1
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if hasattr(self, "container"):
            self.container.close()

    def seek(self, time: int) -> None:
        """Stand before a keyframe at or before `time`, as far as FFmpeg finds one."""
        with decode_errors():
            self.container.seek(time, stream=self.stream)

    def packets(self) -> Iterator[VideoPacket]:
        """The packets of the stream from here on. The last one is empty; decoding it gives the decoder's last
        frames.
        """
        last = None
        for packet in self._demux():
            if packet.size:
                yield packet
            last = packet
        if last is not None:
            yield last

    def scan(self) -> list[PacketInfo]:
        """All packets, of a file that was just opened. `head` has the bytes of the first one then. Raises
        TruncatedError where the end is missing.
        """
        packets = []
        self.head = b""
        is_h264, extradata = self.codec == "h264", self.stream.codec_context.extradata
        for packet in self._demux():
            self.head = self.head or bytes(packet)
            is_idr = is_h264 and packet.is_keyframe and h264.is_idr(bytes(packet), extradata)
            packets.append(PacketInfo.of(packet, is_idr=is_idr))
        packets.pop()  # PyAV's mark of the end
        missing = missing_end(self, packets)
        if missing:
            raise TruncatedError(missing)
        return packets

    def _demux(self) -> Iterator[VideoPacket]:
        """The packets from here on, empty ones too, and PyAV's mark of the end, which is empty."""
        packet = None
        with decode_errors():
            try:
                for packet in self.container.demux(self.stream):
                    yield packet
            except IndexError:
                # After its mark, where a stream appeared in the middle of a TS, which PyAV does not know.
                if packet is None or packet.size:
                    raise

    def decode(self, packet: VideoPacket) -> list[VideoFrame]:
        with decode_errors():
            return packet.decode()

    def frames(self) -> Iterator[VideoFrame]:
        """The frames from here on, in the decoder's order."""
        for packet in self.packets():
            yield from self.decode(packet)


def check_regular(status: os.stat_result) -> None:
    """Raise DecodeError for what is no regular file: reading a pipe or a device may never end."""
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise DecodeError(f"it is {KINDS_OF_FILES.get(kind, 'something else')}, not a file")


def video_stream(container: InputContainer) -> VideoStream:
    """FFmpeg's best video stream, never an attached picture, nor a still where there is another."""
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
    """Why the end of a file is missing, as far as its container can tell, given all of its packets; empty
    where it is whole. MPEG-TS, MPEG-PS, FLV and recordings that were never finished do not tell.
    """
    if video.format == "mov":
        # The table is exact, also where an edit list cuts off frames; `stream.frames` is not.
        there, claimed = len(packets), len(video.stream.index_entries)
        if there < claimed:
            return f"it is truncated: {there} of {claimed} frames are there"
    elif video.format == "avi":
        # Times count dropped frames too, which have no packets. Some writers claim a few frames too many.
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
    """How many bytes a Matroska, WebM or AVI file lacks by the sizes in its headers; 0 where these say
    "unknown", as in live recordings, and for other files.
    """
    with decode_errors(), open(path, "rb") as file:
        end = _riff_end(file) if file.read(4) == b"RIFF" else _segment_end(file)
    return max(0, end - os.path.getsize(path))


def _open(path: str) -> InputContainer:
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join([VIDEO_FORMATS, *IMAGE_FORMATS])}
    try:
        # With the protocol in front, a name such as 12:30.mp4 has no other.
        container = av.open(f"file:{path}", container_options=options, metadata_errors="replace")
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
    """When the video of a Matroska file ends, in seconds; 0 where it does not say."""
    tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", video.stream.metadata.get("DURATION", ""))
    if tag:
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
    # The container's duration is that of the longest stream.
    return (video.container.duration or 0) / av.time_base if len(video.container.streams) == 1 else 0


def _riff_end(file: BinaryIO) -> int:
    """Where the last RIFF chunk ends; 0 for unknown. AVI files of more than 1 GB have several."""
    end, kind = 0, b"RIFF"
    while kind == b"RIFF":
        size = int.from_bytes(file.read(4), "little")
        if not size:
            return 0
        end = file.seek(size + size % 2, os.SEEK_CUR)
        kind = file.read(4)
    return end - size % 2


def _segment_end(file: BinaryIO) -> int:
    """Where the Segment of a Matroska file ends; 0 for unknown."""
    file.seek(0)
    _ebml_number(file, keep_marker=True)
    header_size = _ebml_number(file)
    file.seek(header_size or 0, os.SEEK_CUR)
    if _ebml_number(file, keep_marker=True) != MATROSKA_SEGMENT:
        return 0
    size = _ebml_number(file)
    return 0 if size is None else file.tell() + size


def _ebml_number(file: BinaryIO, *, keep_marker: bool = False) -> int | None:
    """EBML's numbers of variable length: the zeros before the first 1 count the bytes that follow. All ones
    in the rest mean unknown: None.
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
