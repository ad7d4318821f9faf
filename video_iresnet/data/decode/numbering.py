"""Which frames a video has, from the packets of its file."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from .container import PacketInfo, VideoFile, VideoPacket
from .reader import DecodeError

# They store when a frame is decoded. FFmpeg guesses when it is shown, and is wrong for XviD and H.264.
STORE_DECODING_TIMES = {"avi", "asf", "h264", "hevc", "m4v", "mpegvideo", "vc1"}
DOUBTFUL = 32  # frames at the start, among which B-frames show


class Keyframe(NamedTuple):
    """Where decoding can begin: the time of a keyframe, the number of its packet, and the time to seek to."""

    time: int
    packet: int
    seek: int


class Numbering(NamedTuple):
    """The times of all frames to be shown and the keyframes among them, both ascending.

    `times` is None where the packets do not tell the order of the frames. `fingerprints`: of all packets, in
    the order of the file. `start`: the time to seek to for the first one, where it has one. `num_doubtful`:
    how many frames to decode at the start before this is to be believed. `is_closed`: whether nothing behind
    a keyframe needs what stood before it, as far as that shows.
    """

    times: list[int] | None
    keyframes: list[Keyframe]
    fingerprints: array[int]
    start: int | None
    num_doubtful: int
    is_closed: bool


def number_frames(video: VideoFile) -> Numbering:
    """What the packets of a file that was just opened say of its frames. Raises DecodeError."""
    packets = [packet for packet in video.scan() if packet.size]
    if not packets:
        raise DecodeError("it has no frames")
    shown = [(number, packet) for number, packet in enumerate(packets) if not packet.is_discard]
    times = sorted({packet.pts for _, packet in shown if packet.pts is not None})
    # Matroska looks keyframes up by the time when they are shown, the others by that when they are decoded.
    clock = [p.pts if p.dts is None or video.format == "matroska" else p.dts for p in packets]
    fingerprints = array("q", map(fingerprint, packets))
    if len(times) < len(shown) or _clock_jumps_back(packets) or _times_are_guesses(video):
        return Numbering(None, [], fingerprints, clock[0], 0, is_closed=False)
    keyframes = sorted(
        Keyframe(packet.pts or 0, number, clock[number] or 0)
        for number, packet in shown
        if packet.is_keyframe
    )
    if video.stream.codec_context.has_b_frames and times == [packet.pts for _, packet in shown]:
        num_doubtful = DOUBTFUL  # the times may be those of decoding, whatever the container should store
    else:
        num_doubtful = int(
            not packets[0].is_keyframe or times[0] < (packets[0].pts or 0) or not _is_clean(video, packets[0])
        )
    is_closed = video.codec != "h264" or all(p.is_idr for p in packets if p.is_keyframe)
    return Numbering(times, keyframes, fingerprints, clock[0], num_doubtful, is_closed)


def fingerprint(packet: PacketInfo | VideoPacket) -> int:
    """What tells a packet from all others of its file, and is the same whenever it is read."""
    return hash((packet.pts or 0, packet.pos, packet.size))


def _is_clean(video: VideoFile, first: PacketInfo) -> bool:
    """Whether the keyframe at the beginning of a file is one that decoding can begin at, and says nothing
    that FFmpeg must know later.
    """
    if video.codec != "h264":
        return True
    # FFmpeg decodes what old versions of x264 wrote by their own rules, and the first packet alone names the
    # version.
    x264 = re.search(rb"x264 - core (\d+)", video.head)
    if x264 and int(x264[1]) < (151 if "444" in (video.stream.codec_context.pix_fmt or "") else 34):
        return False
    return first.is_idr


def _clock_jumps_back(packets: Sequence[PacketInfo]) -> bool:
    """Whether recordings with a clock each were joined."""
    clock = [packet.dts for packet in packets if packet.dts is not None]
    return any(later < earlier for earlier, later in pairwise(clock))


def _times_are_guesses(video: VideoFile) -> bool:
    context = video.stream.codec_context
    # In Matroska, a stream with the four letters of AVI has AVI's times.
    from_avi = video.format == "matroska" and context.codec_tag.strip("\0") != ""
    # FFmpeg learns only on the way whether H.264 shows frames in another order than it decodes them.
    return (video.format in STORE_DECODING_TIMES or from_avi) and (
        video.codec == "h264" or context.has_b_frames
    )
