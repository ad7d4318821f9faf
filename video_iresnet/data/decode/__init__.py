"""Video decoders, which all give the same frames under the same numbers."""

from .backends import BACKENDS, OpenVideo, load_backend, open_video
from .reader import DecodeError, Reader

__all__ = ["BACKENDS", "DecodeError", "OpenVideo", "Reader", "load_backend", "open_video"]
