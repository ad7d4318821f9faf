"""Open a record with one of the decoders. All of them give the same frames under the same numbers."""

from __future__ import annotations

from collections.abc import Callable

from ..runtime.errors import InputError
from .decode_frames import FrameReader
from .decode_pyav import PyAVReader
from .reader import DecodeError, Reader
from .records import Record

__all__ = ["BACKENDS", "DecodeError", "OpenVideo", "Reader", "load_backend", "open_video"]

OpenVideo = Callable[[Record], Reader]
Backend = Callable[[str], Reader]


def _pyav() -> Backend:
    return PyAVReader


BACKENDS: dict[str, Callable[[], Backend]] = {"pyav": _pyav}


def open_video(record: Record, backend: str = "pyav") -> Reader:
    """A video file by one of BACKENDS, or a folder of frames. Raises DecodeError, and InputError as load_backend does."""
    if record.num_frames:
        return FrameReader(record.path, record.first_frame, record.num_frames)
    return load_backend(backend)(record.path)


def load_backend(name: str) -> Backend:
    """The opener of video files called `name`. Raises InputError for an unknown name, or where its library is not installed."""
    if name not in BACKENDS:
        raise InputError(f"there is no decoder {name!r}; expected one of {', '.join(BACKENDS)}")
    return BACKENDS[name]()
