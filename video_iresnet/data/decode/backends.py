"""Open a record with one of the decoders."""

from __future__ import annotations

from collections.abc import Callable

from ...runtime.errors import InputError, missing_extra, reason
from ..records import Record
from .frames import FrameReader
from .image import ImageReader, is_image
from .packet_index import PacketIndex
from .pyav import PyAVReader
from .reader import Reader

OpenVideo = Callable[[Record], Reader]
Backend = Callable[..., Reader]
"""Opens the path of a file, with or without a PacketIndex."""


def _pyav() -> Backend:
    return PyAVReader


def _torchcodec() -> Backend:
    try:
        from .torchcodec import TorchCodecReader
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: installed, but without FFmpeg
        more = ", and install FFmpeg's shared libraries"
        raise missing_extra("the decoder torchcodec", "torchcodec", error, more) from error
    return TorchCodecReader


def _decord() -> Backend:
    try:
        from .decord import DecordReader
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"the decoder decord cannot be loaded: {reason(error)}; pip install decord, which exists for "
            "x86-64 Linux"
        ) from error
    return DecordReader


BACKENDS: dict[str, Callable[[], Backend]] = {"pyav": _pyav, "torchcodec": _torchcodec, "decord": _decord}


def open_video(record: Record, backend: str = "pyav", index: PacketIndex | None = None) -> Reader:
    """Open a video file with one of BACKENDS, a folder of frames or a picture. Raises DecodeError, and
    InputError as load_backend does. `index`: where the packets of files are looked up, and noted.
    """
    if record.num_frames:
        return FrameReader(record.path, record.first_frame, record.num_frames, fps=record.fps)
    if is_image(record.path):
        return ImageReader(record.path)
    return load_backend(backend)(record.path, index)


def load_backend(name: str) -> Backend:
    """Return the opener of video files called `name`. Raises InputError if the name is unknown or the library
    is missing.
    """
    if name not in BACKENDS:
        raise InputError(f"there is no decoder {name!r}; expected one of {', '.join(BACKENDS)}")
    return BACKENDS[name]()
