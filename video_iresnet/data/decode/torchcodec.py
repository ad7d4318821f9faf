"""Read frames of a video file with torchcodec."""

from __future__ import annotations

import json
from typing import Any, cast

import torch
import torchcodec
from torch import Tensor
from torchcodec.decoders import VideoDecoder

from .other import OtherReader, Read, UnfitError

if (
    getattr(torchcodec, "ffmpeg_major_version", 0) is None
):  # since 0.16 it can be imported without FFmpeg, for images only
    raise ImportError("it finds no shared libraries of FFmpeg")


class TorchCodecReader(OtherReader):
    """Decodes in one thread. Detects by the times of frames if it returns others than requested (MPEG-4 in
    AVI, MPEG-2).
    """

    name = "torchcodec"

    def _connect(self) -> tuple[int, Read]:
        decoder = VideoDecoder(
            cast(Any, self._source()),
            stream_index=self.stream.index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            custom_frame_mappings=self._mappings(),
        )
        if not hasattr(decoder.metadata, "rotation") and any(self.orientation):  # before torchcodec 0.11
            raise UnfitError("it is to be turned, which this torchcodec does not do")

        tick = float(self.stream.time_base or 0)

        def read(indices: list[int]) -> Tensor:
            frames = decoder.get_frames_at(indices)
            expected = torch.tensor([self._times[index] for index in indices], dtype=torch.float64) * tick
            if (frames.pts_seconds - expected).abs().max() > tick / 2:
                raise UnfitError("it gives other frames after a seek")
            pixels: Tensor = frames.data
            return pixels

        return len(decoder), read

    def _mappings(self) -> str | None:
        """Return the numbered frames of an MP4 or MOV file in ffprobe's JSON format, so that torchcodec does
        not demux the whole file again. In other containers it needs its own scan to find some frames.
        """
        if self._video.format != "mov" or len(self) != len(self.stream.index_entries):
            return None
        keyframes = {keyframe.time for keyframe in self._keyframes}
        ends = [
            *self._times[1:],
            2 * self._times[-1] - self._times[-2] if len(self) > 1 else self._times[0] + 1,
        ]
        frames = [
            {"pts": time, "duration": end - time, "key_frame": int(time in keyframes)}
            for time, end in zip(self._times, ends, strict=True)
        ]
        return json.dumps({"frames": frames})
