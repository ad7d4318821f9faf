"""The interface of decoders: number of frames, frame rate, and exact frames."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor


class DecodeError(Exception):
    """A video that cannot be read. The message says why; `problem` is the kind of reason."""

    problem = "unreadable"


class NoVideoError(DecodeError):
    """A readable file without video."""

    problem = "no video"


class TruncatedError(DecodeError):
    """A file whose end is missing."""

    problem = "truncated"


class Reader(AbstractContextManager["Reader"], Protocol):
    """The frames of one video, upright, numbered from 0 in presentation order."""

    def __len__(self) -> int: ...

    @property
    def fps(self) -> float:
        """Average source frames per second; 0 if unknown, as for some folders of frames."""
        ...

    def read(self, indices: Sequence[int]) -> Tensor:
        """(T,) frame numbers, in any order and with repeats -> (T, H, W, 3) uint8 RGB. Raises DecodeError."""
        ...
