"""Parse what FFmpeg does not report of H.264 (ITU-T H.264, sections 7.3 and 7.4)."""

from __future__ import annotations

import re
from collections.abc import Iterator

SLICE_OF_IDR, SPS = 5, 7  # types of NAL units; no frame after an IDR picture refers to one before it
# Profiles with more about colour in the sequence parameter set.
HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}


def is_idr(packet: bytes, extradata: bytes | None) -> bool:
    """Whether a keyframe is an IDR picture. Open GOPs and recovery points are marked as keyframes too."""
    return any(unit[0] & 31 == SLICE_OF_IDR for unit in _nal_units(packet, extradata))


def x264_build(packet: bytes) -> int | None:
    """Return the build of x264 that a first packet names; None if it names none."""
    found = re.search(rb"x264 - core (\d{1,9})", packet)
    return int(found[1]) if found else None


def may_be_interlaced(extradata: bytes | None) -> bool:
    """Whether the stream allows interlaced frames; True if unknown."""
    if not extradata:
        return True
    if extradata[0] == 1:  # an avcC box: from byte 6, its sets follow their lengths of two bytes
        size = int.from_bytes(extradata[6:8], "big")
        sets = [extradata[8 : 8 + size]]
    else:
        sets = [unit for unit in _nal_units(extradata, None) if unit[0] & 31 == SPS]
    try:
        return not sets or not all(_has_frames_alone(unit) for unit in sets)
    except IndexError:
        return True


def _nal_units(data: bytes, extradata: bytes | None) -> Iterator[bytes]:
    """Yield NAL units, which follow their lengths if `extradata` is an avcC box (MP4, Matroska), or else
    start codes.
    """
    if not extradata or extradata[0] != 1 or len(extradata) < 5:
        yield from (unit for unit in re.split(b"\0\0\1", data)[1:] if unit)
        return
    length_size, place = (extradata[4] & 3) + 1, 0
    while place + length_size < len(data):
        size = int.from_bytes(data[place : place + length_size], "big")
        place += length_size
        if size:
            yield data[place : place + size]
        place += size


class _Bits:
    """Reads numbers bit by bit. Raises IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._place = 0

    def take(self, count: int) -> int:
        self._place += count
        if self._place > len(self._bits):
            raise IndexError("the bits end here")
        return int(self._bits[self._place - count : self._place] or "0", 2)

    def golomb(self) -> int:
        """Read an unsigned exponential Golomb code, which also skips a signed one."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def _has_frames_alone(sps: bytes) -> bool:
    """Return frame_mbs_only_flag of a sequence parameter set."""
    bits = _Bits(sps[1:].replace(b"\0\0\3", b"\0\0"))
    profile = bits.take(8)
    bits.take(16)
    bits.golomb()
    if profile in HIGH_PROFILES:
        chroma = bits.golomb()
        if chroma == 3:
            bits.take(1)
        bits.golomb()
        bits.golomb()
        bits.take(1)
        if bits.take(1):
            _skip_scaling_lists(bits, 12 if chroma == 3 else 8)
    bits.golomb()
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1)
        for _ in range(2):
            bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb()
    bits.take(1)
    bits.golomb()
    bits.golomb()
    return bool(bits.take(1))


def _skip_scaling_lists(bits: _Bits, count: int) -> None:
    for number in range(count):
        if bits.take(1):
            last = scale = 8
            for _ in range(16 if number < 6 else 64):
                if scale:
                    code = bits.golomb()
                    scale = (last + ((code + 1) // 2 if code % 2 else -code // 2)) % 256
                last = scale or last
