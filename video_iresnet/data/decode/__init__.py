"""Video decoders, which all give the same frames under the same numbers."""

from .backends import BACKENDS, OpenVideo, load_backend, open_video
from .packet_index import PacketIndex
from .reader import DecodeError, Reader

__all__ = ["BACKENDS", "DecodeError", "OpenVideo", "PacketIndex", "Reader", "load_backend", "open_video"]
