"""Read given frames of a video that was extracted to one JPEG file a frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from ..runtime.storage import path_manager
from .reader import DecodeError


class FrameReader:
    """The files `pattern % number` for the numbers first_frame .. first_frame + num_frames - 1; a file is opened only when it is read."""

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
        """See Reader."""
        frames = {index: self._frame(index) for index in sorted(set(indices))}
        sizes = {tuple(frame.shape[1:]): index for index, frame in frames.items()}
        if len(sizes) > 1:
            named = ", ".join(f"{width}x{height} ({self._path(index)})" for (height, width), index in sizes.items())
            raise DecodeError(f"its frames have several sizes: {named}")
        return torch.stack([frames[index] for index in indices]).permute(0, 2, 3, 1)

    def _frame(self, index: int) -> Tensor:
        path = self._path(index)
        try:
            frame: Tensor = decode_jpeg(read_file(path_manager.get_local_path(path)), ImageReadMode.RGB)
        except (OSError, RuntimeError) as error:
            raise DecodeError(f"{path}: {error}") from error
        return frame

    def _path(self, index: int) -> str:
        return self.pattern % (self.first_frame + index)
