"""Read given frames of a video that was extracted to one JPEG file a frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from ..runtime.storage import path_manager
from .reader import DecodeError


class FrameReader:
    """The files `pattern % number`, numbers from `first_frame` on; a file is opened only when its frame is read."""

    def __init__(self, pattern: str, first_frame: int, num_frames: int, *, fps: float = 30) -> None:
        self.pattern = pattern
        self.first_frame = first_frame
        self.num_frames = num_frames
        self.fps = fps

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def __len__(self) -> int:
        return self.num_frames

    def read(self, indices: Sequence[int]) -> Tensor:
        """See Reader. Raises DecodeError also where the frames have several sizes."""
        frames = {index: self._frame(index) for index in sorted(set(indices))}
        sizes: dict[tuple[int, int], int] = {}
        for index, frame in frames.items():
            sizes.setdefault((frame.shape[1], frame.shape[0]), index)
        if len(sizes) > 1:
            named = ", ".join(f"{width}x{height} ({self._path(index)})" for (width, height), index in sizes.items())
            raise DecodeError(f"its frames have several sizes: {named}")
        return torch.from_numpy(np.stack([frames[index] for index in indices]))

    def _frame(self, index: int) -> np.ndarray:
        """(H, W, 3)."""
        path = self._path(index)
        try:
            with open(path_manager.get_local_path(path), "rb") as file:
                return np.asarray(simplejpeg.decode_jpeg(file.read(), "RGB"))
        except (OSError, ValueError) as error:
            raise DecodeError(f"{path}: {getattr(error, 'strerror', None) or error}") from error

    def _path(self, index: int) -> str:
        try:
            return self.pattern % (self.first_frame + index)
        except (TypeError, ValueError) as error:
            raise DecodeError(f"the pattern of its frames is {self.pattern!r}; expected one number, as in 74225/%06d.jpg") from error
