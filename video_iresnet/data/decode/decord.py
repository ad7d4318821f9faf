"""Read given frames of a video file with decord. Imported only where it is asked for."""

from __future__ import annotations

import decord
import torch

from .other import OtherReader, Read, UnfitError


class DecordReader(OtherReader):
    """H.264 in MP4 and MOV. After a seek in other files decord gives wrong frames without an error (HEVC,
    MPEG-4, Matroska with open GOPs).
    """

    name = "decord"

    def _connect(self) -> tuple[int, Read]:
        codec, container = self._stream.codec_context.name, self._container.format.name
        if codec != "h264" or "mp4" not in container:
            raise UnfitError(f"{codec} in {container.split(',')[0]}")
        decoder = decord.VideoReader(self._local, num_threads=1)
        return len(decoder), lambda indices: torch.from_numpy(decoder.get_batch(indices).asnumpy())
