"""Video decoders: each reads a video that is written here, and gives the frames that were written."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from ..data.decode import BACKENDS, load_backend
from ..data.decode.other import OtherReader
from ..runtime.environment import DECODING
from ..runtime.errors import InputError
from .finding import OK, PROBLEM, WARNING, Check, Finding

NUM_FRAMES, HEIGHT, WIDTH = 40, 64, 96
READ = (17, 0, 39, 5, 17)  # in no order, and one twice
LARGEST_ERROR = 6.0  # mean difference from the drawn picture, out of 255: 2.6 as written, 13 one frame beside
PYAV = "leave DATA.DECODING_BACKEND pyav"
LARGEST_DIFFERENCE = 1  # of a decoder from PyAV, out of 255


def ffmpeg(folder: Path) -> Iterator[Finding]:
    """PyAV's FFmpeg, and whether it can write H.264."""
    libraries = ", ".join(f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in DECODING)
    found = f"PyAV {av.__version__}: {libraries}"
    if has_encoder():
        yield Finding("FFmpeg", OK, f"{found}, libx264")
    else:
        yield Finding(
            "FFmpeg",
            WARNING,
            f"{found}, without libx264",
            "transcode.py and moving_shapes.py write H.264: pip install av, whose own FFmpeg has it",
        )


def has_encoder() -> bool:
    """Whether PyAV can write H.264."""
    try:
        av.codec.Codec("libx264", "w")
    except ValueError:  # of which FFmpeg's error of an unknown codec is one
        return False
    return True


def decoders(folder: Path) -> Iterator[Finding]:
    """Every decoder on one video."""
    codec = "libx264" if has_encoder() else "mpeg4"
    with tempfile.TemporaryDirectory() as temporary:
        path = str(Path(temporary) / "generated.mp4")
        write_generated(path, codec)
        for name in BACKENDS:
            yield decoder(name, path)


def decoder(name: str, path: str) -> Finding:
    """Compare what a decoder reads with the pictures, and with PyAV."""
    title = f"decoder {name}"
    try:
        open_reader = load_backend(name)
    except InputError as error:
        found, _, remedy = str(error).rpartition("; ")
        return Finding(title, WARNING, found, f"{remedy}; or {PYAV}")
    with open_reader(path) as reader:
        frames = reader.read(READ)
        num_frames = len(reader)
        if isinstance(reader, OtherReader) and reader.left_because:
            found = f"PyAV reads instead of it: {reader.left_because}"
            return Finding(title, WARNING, found, PYAV)
    with load_backend("pyav")(path) as reference:
        difference = (frames.int() - reference.read(READ).int()).abs().max()
    off = (frames.float() - drawn_frames(READ)).abs().mean((1, 2, 3)).max()
    found = f"{num_frames} of {NUM_FRAMES} frames, within {difference} of 255 of PyAV's"
    if num_frames == NUM_FRAMES and off < LARGEST_ERROR and difference <= LARGEST_DIFFERENCE:
        return Finding(title, OK, f"{version(name)}: {found}")
    remedy = "pip install --force-reinstall av" if name == "pyav" else PYAV
    return Finding(title, PROBLEM, f"wrong frames: {found}, and {off:.0f} from what was written", remedy)


def version(name: str) -> str:
    """Return the version of a decoder and of its FFmpeg, as far as it tells."""
    if name == "torchcodec":
        import torchcodec

        major = getattr(torchcodec, "ffmpeg_major_version", "unknown")
        return f"{torchcodec.__version__}, FFmpeg {major}"
    return metadata.version({"pyav": "av"}.get(name, name))


@functools.cache
def drawn_frames(numbers: tuple[int, ...]) -> Tensor:
    """(T, H, W, 3): smooth waves that move, so that each frame differs from all others."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    phases = [2 * np.pi * number / NUM_FRAMES for number in numbers]
    waves = [
        np.stack([np.sin(x / 15 + phase), np.cos(y / 10 - phase), np.sin((x + y) / 20 + 2 * phase)], -1)
        for phase in phases
    ]
    return torch.from_numpy(127.5 + 100 * np.stack(waves)).float()


def write_generated(path: str, codec: str) -> None:
    """Write a video with frames between and after keyframes, and with B-frames."""
    options = {"crf": "10", "g": "12", "bf": "2"} if codec == "libx264" else {"g": "12", "b": "4000000"}
    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in drawn_frames(tuple(range(NUM_FRAMES))):
            frame = av.VideoFrame.from_ndarray(picture.round().byte().numpy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


CHECKS: tuple[Check, ...] = (ffmpeg, decoders)
