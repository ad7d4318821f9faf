"""Write pictures as an H.264 video that every player shows, with the sound of another file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ..data.decode.container import VideoFile, decode_errors
from ..data.decode.pyav import PyAVReader
from ..data.decode.reader import DecodeError
from ..runtime.errors import InputError, reason
from ..runtime.logging import log
from ..runtime.storage import Output, atomic_write

Picture = NDArray[np.uint8]
TICK = Fraction(1, 90_000)  # seconds, the clock of MPEG
SAMPLES, LAYOUT = 48_000, "stereo"  # of the sound, per second


def write_movie(
    path: Path,
    pictures: Iterable[tuple[float, Picture]],
    *,
    rate: float,
    sound_of: PyAVReader | None = None,
) -> None:
    """Write (seconds, (H, W, 3) RGB) pictures of one size, with ascending times from 0, as MP4. An odd height
    or width loses its last row or column.

    `rate`: pictures per second. `sound_of`: an open video whose sound is written too, as AAC; its first frame
    is at time 0. Raises InputError if the file cannot be written or there are no pictures.
    """
    with atomic_write(path, "w+b") as file:
        output = Output(file)
        try:
            with av.open(output, "w", format="mp4") as target:
                _write(target, pictures, Fraction(rate).limit_denominator(1001), sound_of)
        except av.FFmpegError as error:
            raise InputError(f"cannot write {path}: {reason(output.error or error)}") from error
        if output.error is not None:
            raise output.error


def _write(
    target: Any, pictures: Iterable[tuple[float, Picture]], rate: Fraction, source: PyAVReader | None
) -> None:
    stream: Any = None
    sound: Any = None
    frames: Iterator[Any] = iter(())
    last = -1
    for seconds, picture in pictures:
        height, width = (size // 2 * 2 for size in picture.shape[:2])
        if stream is None:
            stream = target.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = TICK
            if source is not None:
                frames = _sound(source)
                sound = target.add_stream("aac", rate=SAMPLES, layout=LAYOUT)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
        last = max(last + 1, round(seconds / TICK))
        frame.pts, frame.time_base = last, TICK
        target.mux(stream.encode(frame))
        # Both streams advance together, so that neither has to wait in memory.
        for part in frames:
            target.mux(sound.encode(part))
            if part.time is not None and part.time > seconds:
                break
    if stream is None:
        raise InputError("there are no pictures to write")
    for part in frames:
        target.mux(sound.encode(part))
    for each in filter(None, (stream, sound)):
        target.mux(each.encode())


def _sound(source: PyAVReader) -> Iterator[Any]:
    """Yield the sound of a video as frames whose times start at its first picture, as far as it can be
    decoded.
    """
    resampler = av.AudioResampler("fltp", LAYOUT, SAMPLES)
    start = float(source.seconds[0])
    try:
        with VideoFile(source.path) as file, decode_errors():
            tracks = file.container.streams.audio
            for packet in file.container.demux(tracks[0]) if tracks else ():
                for frame in packet.decode():
                    for part in resampler.resample(frame):
                        if part.time is None or part.time < start:
                            continue
                        part.pts = round((part.time - start) * SAMPLES)
                        part.time_base = Fraction(1, SAMPLES)
                        yield part
    except DecodeError as error:
        log.warning("%s: the rest of its sound is left out: %s", source.path, error)
