"""Number the frames of a video from its packets."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from .container import PacketInfo, Packets, VideoFile, VideoPacket
from .reader import DecodeError

# Containers with decoding times only. FFmpeg guesses presentation times, wrongly for Xvid and H.264.
STORE_DECODING_TIMES = {"avi", "asf", "h264", "hevc", "m4v", "mpegvideo", "vc1"}
DOUBTFUL = 32  # frames at the start, among which B-frames appear


class Keyframe(NamedTuple):
    """Where decoding can begin: the time of a keyframe, the number of its packet, and the time to seek to."""

    time: int
    packet: int
    seek: int


class Numbering(NamedTuple):
    """The times of all shown frames, and the keyframes among them, both ascending.

    `times` is None if the packets do not determine the order of the frames. `fingerprints`: of all packets,
    in file order. `start`: the time to seek to for the first packet, if it has one. `num_doubtful`: how many
    frames at the start must be decoded to verify the times. `is_closed`: whether, as far as known, no frame
    after a keyframe needs one before it.
    """

    times: list[int] | None
    keyframes: list[Keyframe]
    fingerprints: array[int]
    start: int | None
    num_doubtful: int
    is_closed: bool


def number_frames(video: VideoFile, found: Packets) -> Numbering:
    """Number the frames of a file with these packets. Raises DecodeError if it has none."""
    packets = found.all
    if not packets:
        raise DecodeError("it has no frames")
    shown = [(number, packet) for number, packet in enumerate(packets) if not packet.is_discard]
    times = sorted({packet.pts for _, packet in shown if packet.pts is not None})
    # Seeking uses presentation times in Matroska, and decoding times elsewhere, but see below for MP4.
    clock = [p.pts if p.dts is None or video.format == "matroska" else p.dts for p in packets]
    fingerprints = array("q", map(fingerprint, packets))
    if len(times) < len(shown) or _clock_jumps_back(packets) or _times_are_guesses(video):
        return Numbering(None, [], fingerprints, clock[0], 0, is_closed=False)
    keyframes = sorted(
        Keyframe(packet.pts or 0, number, clock[number] or 0)
        for number, packet in shown
        if packet.is_keyframe
    )
    if video.format == "mov":
        keyframes = _sought_by_presentation(keyframes)
    if video.stream.codec_context.has_b_frames and times == [packet.pts for _, packet in shown]:
        num_doubtful = DOUBTFUL  # the times may be decoding times, whatever the container should store
    else:
        num_doubtful = int(
            not packets[0].is_keyframe or times[0] < (packets[0].pts or 0) or not _is_clean(video, found)
        )
    is_closed = video.codec != "h264" or all(p.is_idr for p in packets if p.is_keyframe)
    return Numbering(times, keyframes, fingerprints, clock[0], num_doubtful, is_closed)


def _sought_by_presentation(keyframes: Sequence[Keyframe]) -> list[Keyframe]:
    """Let FFmpeg seek to times of presentation: from those of decoding it goes back to the keyframe before.
    They are used where the next keyframe is decoded later.
    """
    ends = [*(keyframe.seek for keyframe in keyframes[1:]), math.inf]
    return [
        keyframe._replace(seek=keyframe.time) if keyframe.time < end else keyframe
        for keyframe, end in zip(keyframes, ends, strict=True)
    ]


def fingerprint(packet: PacketInfo | VideoPacket) -> int:
    """Return a number that identifies a packet of a file whenever it is read."""
    return hash((packet.pts or 0, packet.pos, packet.size))


def _is_clean(video: VideoFile, packets: Packets) -> bool:
    """Whether decoding can start at the first keyframe later on, and its packet has no information for later
    ones.
    """
    if video.codec != "h264":
        return True
    # FFmpeg decodes streams of old versions of x264 differently, and only the first packet contains the
    # version.
    oldest = 151 if "444" in (video.stream.codec_context.pix_fmt or "") else 34
    return (packets.x264 is None or packets.x264 >= oldest) and packets.all[0].is_idr


def _clock_jumps_back(packets: Sequence[PacketInfo]) -> bool:
    """Whether recordings with separate clocks were joined."""
    clock = [packet.dts for packet in packets if packet.dts is not None]
    return any(later < earlier for earlier, later in pairwise(clock))


def _times_are_guesses(video: VideoFile) -> bool:
    context = video.stream.codec_context
    # In Matroska, a stream with an AVI codec tag has AVI's times.
    from_avi = video.format == "matroska" and context.codec_tag.strip("\0") != ""
    # FFmpeg only learns during decoding whether H.264 reorders frames.
    return (video.format in STORE_DECODING_TIMES or from_avi) and (
        video.codec == "h264" or context.has_b_frames
    )
