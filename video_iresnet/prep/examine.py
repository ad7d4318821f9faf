"""Examine one video or picture: hash it, decode it completely, and report problems."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..data.decode.container import VideoFile, check_regular
from ..data.decode.image import FORMATS, ImageReader, is_image
from ..data.decode.pyav import PyAVReader
from ..data.decode.reader import DecodeError
from ..runtime.errors import reason
from ..runtime.ranges import is_ranged, open_bytes, version_of

RATES = (10, 61)  # usual frames per second
UNEVEN = 0.01  # fraction of frame intervals that may differ from the usual one


class Job(NamedTuple):
    """A file, and whether to decode it or only to hash it."""

    path: str
    is_decoded: bool


class Finding(NamedTuple):
    """The findings for a file. Times in seconds, rates in frames per second, sizes in bytes."""

    path: str
    size: int = 0
    mtime_ns: int = 0
    is_decoded: bool = False
    problem: str = ""  # missing, unreadable, no video, no frames, truncated
    reason: str = ""
    sha256: str = ""
    codec: str = ""
    height: int = 0
    width: int = 0
    num_frames: int = 0
    duration: float = 0.0
    frame_rate: float = 0.0
    uneven: int = 0  # frame intervals that differ from the usual one
    lost: int = 0  # frames missing between the first and the last, judging by gaps in a constant rate
    unshown: int = 0  # frames at the start that need missing ones
    damage: str = ""


def size_and_time(path: str) -> tuple[int, int]:
    """Return bytes, and nanoseconds since 1970, or 0 where files are read in ranges. Raises OSError, and
    DecodeError if it is no regular file.
    """
    if is_ranged(path):
        return version_of(path).size, 0
    status = os.stat(path)
    check_regular(status)
    return status.st_size, status.st_mtime_ns


def examine(job: Job) -> Finding:
    """Hash and decode one file. Every failure is a finding."""
    finding = Finding(job.path, is_decoded=job.is_decoded)
    try:
        size, mtime_ns = size_and_time(job.path)
        finding = finding._replace(size=size, mtime_ns=mtime_ns)
        with open_bytes(job.path) as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        finding = finding._replace(sha256=digest.hexdigest())
        if not size:
            raise DecodeError("the file is empty")
        if not job.is_decoded:
            return finding
        found = decode_picture(job.path) if is_image(job.path) else decode(job.path)
        return finding._replace(**found)
    except FileNotFoundError:
        return finding._replace(problem="missing", reason="No such file or directory")
    except OSError as error:
        return finding._replace(problem="unreadable", reason=reason(error))
    except DecodeError as error:
        return finding._replace(problem=error.problem, reason=str(error))


def decode(path: str) -> dict[str, Any]:
    """Decode strictly; if that fails, decode as in training, which conceals damage. Returns fields of
    Finding. Raises DecodeError.
    """
    with PyAVReader(path) as reader:
        stream = reader.stream
        found = {
            "codec": stream.codec_context.name,
            "height": stream.height,
            "width": stream.width,
            "num_frames": len(reader),
            "unshown": reader.num_unshown,
            **pace(reader),
        }
        failure = damage(path, len(reader))
        if failure:
            deque(reader.frames(), maxlen=0)
            found["damage"] = f"decodes only with pictures patched up: {failure}"
        return found


def decode_picture(path: str) -> dict[str, Any]:
    """Decode a picture as in training. Returns fields of Finding; durations and rates stay 0. Raises
    DecodeError.
    """
    with ImageReader(path) as reader:
        _, height, width, _ = reader.read([0]).shape
        damage = f"decodes only with parts patched up: {reader.damage}" if reader.damage else ""
    with open_bytes(path) as file, Image.open(file, formats=FORMATS) as image:
        codec = (image.format or "").lower()
    return {"codec": codec, "height": height, "width": width, "num_frames": 1, "damage": damage}


def damage(path: str, num_frames: int) -> str:
    """Return why frames cannot be decoded without concealing damage; empty if they can."""
    decoded, has_keyframe = 0, False
    with VideoFile(path) as video:
        video.stream.codec_context.options = {"err_detect": "explode"}
        try:
            for packet in video.packets():
                has_keyframe |= packet.is_keyframe
                try:
                    decoded += len(video.decode(packet))
                except DecodeError:
                    if has_keyframe:
                        raise
        except DecodeError as error:
            return f"{error} after {decoded} frames"
    return "" if decoded >= num_frames else f"{decoded} of {num_frames} frames can be decoded"


def pace(reader: PyAVReader) -> dict[str, Any]:
    """Return the duration, frame rate, number of lost frames and number of uneven intervals, from the times
    of the frames.
    """
    seconds = np.array(reader.seconds, float)
    if len(seconds) < 2:
        rate = float(reader.given_rate)
        return {"duration": len(seconds) / rate, "frame_rate": rate}
    steps, tick = np.diff(seconds), float(reader.stream.time_base or 0)
    usual, span = float(np.median(steps)), float(seconds[-1] - seconds[0])
    regular = 1 / float(reader.given_rate)
    gaps = steps / regular
    # At a constant rate, every interval is a multiple of the regular one.
    is_constant = bool((abs(gaps - gaps.round()) * regular <= max(1.5 * tick, 0.1 * regular)).all())
    return {
        "duration": round(span + usual, 6),
        "frame_rate": round(len(steps) / span, 4),
        "lost": int(gaps.round().sum()) - len(steps) if is_constant and gaps.min() > 0.5 else 0,
        "uneven": int((abs(steps - usual) > max(1.5 * tick, 0.1 * usual)).sum()),
    }


def warnings_of(finding: Finding) -> Iterable[tuple[str, str]]:
    """Yield (problem, reason) for each oddity of a video that can be decoded."""
    if finding.damage:
        yield "damaged", finding.damage
    if not RATES[0] <= finding.frame_rate <= RATES[1] and not is_image(finding.path):
        yield "odd frame rate", f"{finding.frame_rate:.2f} frames a second, outside [{RATES[0]}, {RATES[1]}]"
    if finding.unshown:
        yield (
            "begins in the middle",
            f"the first {finding.unshown} frames need others that are not there, and are not counted",
        )
    if finding.lost > UNEVEN * finding.num_frames:
        total = finding.num_frames + finding.lost
        yield "frames lost", f"{finding.num_frames} of {total} frames are there, at a constant rate with gaps"
    elif finding.uneven > UNEVEN * finding.num_frames:
        yield (
            "uneven frame rate",
            f"{finding.uneven} of {finding.num_frames - 1} steps between frames differ from the usual one",
        )
