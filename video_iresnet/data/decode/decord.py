"""Read frames of a video file with decord."""

from __future__ import annotations

import decord
import torch

from .other import OtherReader, Read, UnfitError


class DecordReader(OtherReader):
    """H.264 in MP4 and MOV. In other files decord silently returns wrong frames after a seek (HEVC, MPEG-4,
    Matroska with open GOPs).
    """

    name = "decord"

    def _connect(self) -> tuple[int, Read]:
        codec, container = self._video.codec, self._video.format
        if codec != "h264" or container != "mov":
            raise UnfitError(f"{codec} in {container}")
        if len(self._video.container.streams.video) > 1:
            raise UnfitError("several video streams, of which decord takes the largest")
        decoder = decord.VideoReader(self._source(), num_threads=1)
        return len(decoder), lambda indices: torch.from_numpy(decoder.get_batch(indices).asnumpy())
