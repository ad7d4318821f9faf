"""What a decoder offers: the number of frames, their rate, and any of them, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor


class DecodeError(Exception):
    """A video that cannot be read; the message says why, `problem` which kind of reason that is."""

    problem = "unreadable"


class NoVideoError(DecodeError):
    """A file that FFmpeg reads, but without video."""

    problem = "no video"


class TruncatedError(DecodeError):
    """A file whose end is missing."""

    problem = "truncated"


class Reader(AbstractContextManager["Reader"], Protocol):
    """The frames of one video, numbered from 0 in the order of presentation, upright."""

    def __len__(self) -> int: ...

    @property
    def fps(self) -> float:
        """Source frames per second, on average over the video; 0 where that is not known, as of some folders
        of frames.
        """
        ...

    def read(self, indices: Sequence[int]) -> Tensor:
        """(T,) frame numbers, in any order and with repeats -> (T, H, W, 3) uint8 RGB. Raises DecodeError."""
        ...
