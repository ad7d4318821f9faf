"""The one thing about Matroska and WebM that FFmpeg does not tell: whether the end of the file is missing."""

from __future__ import annotations

import os
from typing import BinaryIO

SEGMENT = 0x18538067  # the element that holds everything after the file's header


def missing_bytes(path: str) -> int:
    """How many bytes the file lacks by the size in its header; 0 where that says "unknown", as in live
    recordings.
    """
    with open(path, "rb") as file:
        _number(file, keep_marker=True)
        header_size = _number(file)
        file.seek(header_size or 0, os.SEEK_CUR)
        if _number(file, keep_marker=True) != SEGMENT:
            return 0
        size = _number(file)
        return 0 if size is None else max(0, file.tell() + size - os.path.getsize(path))


def _number(file: BinaryIO, *, keep_marker: bool = False) -> int | None:
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
