"""Read pictures, as videos of one frame."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...runtime.errors import reason
from ...runtime.ranges import is_ranged, open_bytes
from .container import check_regular
from .reader import DecodeError, TruncatedError

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp"])
FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow's names; files of others are refused whatever they are called


def is_image(path: str) -> bool:
    """Whether a path is that of a picture, by its ending."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


class ImageReader:
    """The picture of a JPEG, PNG or WebP file as the only frame of a video.

    As with Pillow's `convert("RGB")` in torchvision's data sets, transparency is dropped and the orientation
    in EXIF is ignored: networks of the field were trained so. `damage`: what the decoder concealed.
    """

    fps = 0.0

    def __init__(self, path: str) -> None:
        try:
            if not is_ranged(path):
                check_regular(os.stat(path))  # a pipe would never end
            with open_bytes(path) as file:
                data = file.read()
            self._picture, self.damage = _decoded(data)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            kind = TruncatedError if "truncated" in str(error) else DecodeError
            raise kind(reason(error)) from error

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def __len__(self) -> int:
        return 1

    def read(self, indices: Sequence[int]) -> Tensor:
        """See Reader; the only number is 0."""
        return torch.from_numpy(self._picture).expand(len(indices), -1, -1, -1)


def _decoded(data: bytes) -> tuple[NDArray[np.uint8], str]:
    """The bytes of a file -> (1, H, W, 3) uint8 RGB, and what the decoder conceals. Both libraries decode
    JPEGs with libjpeg-turbo, to the same pixels; simplejpeg is faster, and Pillow reads all kinds. Raises
    ValueError or OSError.
    """
    damage = ""
    if data.startswith(b"\xff\xd8"):
        try:
            if simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "Gray"):
                return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))[None], ""
        except ValueError as error:
            damage = reason(error)  # perhaps only unusual
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return np.array(image.convert("RGB"))[None], damage
