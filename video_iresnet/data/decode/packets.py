"""Write what a file's packets are in few bytes: some 800 for ten seconds with sound."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from .container import PacketInfo, Packets

HEADER = struct.Struct("<Ii")  # number of packets, build of x264 or -1
UNKNOWN = -(2**63)  # stands for None
DTYPES = tuple(np.dtype(name) for name in ("<i1", "<i2", "<i4", "<i8"))
LARGEST = 2**25  # bytes of a table, against forged ones: a day of 50 frames a second


def pack(packets: Packets) -> bytes:
    """Write packets as zlib's compression of columns: differences from what most packets have, each column in
    the smallest integers that hold it, whose bytes are sorted by their place in the integer.
    """
    times = ((p.pts, p.dts, p.duration, p.pos, p.size) for p in packets.all)
    pts, dts, duration, pos, size = np.array(
        [[UNKNOWN if value is None else value for value in row] for row in times], np.int64
    ).T
    flags = np.array([_flags(packet) for packet in packets.all], np.int64)
    step = np.diff(dts, prepend=0)
    gap = pos - np.concatenate([[0], (pos + size)[:-1]])
    columns = (step, pts - dts, duration, gap, size, flags)
    header = HEADER.pack(len(flags), -1 if packets.x264 is None else packets.x264)
    return zlib.compress(header + b"".join(map(_packed, columns)), 9)


def unpack(data: bytes) -> Packets:
    """Read what `pack` wrote. Raises ValueError if it did not."""
    try:
        reading = zlib.decompressobj()
        table = reading.decompress(data, LARGEST)
        count, x264 = HEADER.unpack_from(table)
        columns, place = [], HEADER.size
        for _ in range(6):
            dtype = DTYPES[table[place]]
            end = place + 1 + count * dtype.itemsize
            planes = np.frombuffer(table[place + 1 : end], np.uint8).reshape(dtype.itemsize, count)
            columns.append(np.ascontiguousarray(planes.T).view(dtype)[:, 0].astype(np.int64))
            place = end
    except (zlib.error, struct.error, IndexError, ValueError) as error:
        raise ValueError(f"this is no table of packets: {error}") from error
    step, delay, duration, gap, size, flags = columns
    if not reading.eof or place != len(table) or not count or size.min() < 1 or flags.min() < 0:
        raise ValueError("this is no table of packets")
    dts = np.cumsum(step)
    pos = np.cumsum(gap + np.concatenate([[0], size[:-1]]))
    bits = [(flags >> bit & 1).astype(bool).tolist() for bit in range(4)]
    rows = zip(
        _known(dts + delay), _known(dts), duration.tolist(), _known(pos), size.tolist(), *bits, strict=True
    )
    return Packets([PacketInfo(*row) for row in rows], None if x264 < 0 else x264)


def _known(column: np.ndarray) -> list[int | None]:
    return [None if value == UNKNOWN else value for value in column.tolist()]


def _flags(packet: PacketInfo) -> int:
    bits = (packet.is_keyframe, packet.is_discard, packet.is_corrupt, packet.is_idr)
    return sum(bit << place for place, bit in enumerate(bits))


def _packed(column: np.ndarray) -> bytes:
    number = next(n for n, dtype in enumerate(DTYPES) if (column == column.astype(dtype)).all())
    small = column.astype(DTYPES[number])
    return bytes([number]) + small.view(np.uint8).reshape(len(small), -1).T.tobytes()
