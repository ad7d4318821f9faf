"""Read frames of a video that was extracted to JPEG files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from ...runtime.errors import reason
from ...runtime.ranges import open_bytes
from .reader import DecodeError

PNG = b"\x89PNG"  # the first bytes of a PNG file


class FrameReader:
    """The files `pattern % number`, numbered from `first_frame`; a file is opened when its frame is read."""

    def __init__(self, pattern: str, first_frame: int, num_frames: int, *, fps: float = 0) -> None:
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
        """See Reader. Also raises DecodeError if the frames differ in size."""
        frames: np.ndarray = np.empty(0, np.uint8)
        places: dict[int, int] = {}
        for place, index in enumerate(indices):
            if index in places:
                frames[place] = frames[places[index]]
                continue
            places[index] = place
            path = self._path(index)
            try:
                with open_bytes(path) as file:
                    data = file.read()
                if data.startswith(PNG):
                    raise DecodeError(f"{path} is a PNG picture; expected JPEG, convert the frames")
                height, width, *_ = simplejpeg.decode_jpeg_header(data)
                if not place:
                    frames = np.empty((len(indices), height, width, 3), np.uint8)
                elif (height, width) != frames.shape[1:3]:
                    raise DecodeError(
                        f"its frames have several sizes: {self._path(indices[0])} and {path}, which is "
                        f"{width}x{height}"
                    )
                simplejpeg.decode_jpeg(data, "RGB", buffer=frames[place])
            except (OSError, ValueError) as error:
                raise DecodeError(f"{path}: {reason(error)}") from error
        return torch.from_numpy(frames)

    def _path(self, index: int) -> str:
        try:
            return self.pattern % (self.first_frame + index)
        except (TypeError, ValueError) as error:
            raise DecodeError(
                f"the pattern of its frames is {self.pattern!r}; expected one number, as in 74225/%06d.jpg"
            ) from error
