"""Colours: decoded frames become the pictures they were made from, as nearly as their chroma allows.

The reference is computed in floating point from the decoded planes: chroma interpolated between the places
where the encoder took it, then the matrix of ITU-R BT.601 or BT.709.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from video_iresnet.data.decode.picture import Picture, is_plain
from video_iresnet.data.decode.pyav import PyAVReader

MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # the weights of red and blue in the luma
LOSSLESS = {"qp": "0", "bf": "0"}


class Kind(NamedTuple):
    """How a video stores colour. `across`, `down`: luma samples per chroma sample. `left`: where chroma lies
    across, on the left one of its luma samples or between them.
    """

    pix_fmt: str = "yuv420p"
    size: tuple[int, int] = (48, 64)
    bits: int = 8
    across: int = 2
    down: int = 2
    matrix: str = "bt601"
    full: bool = False
    left: bool = True
    fields: bool = False
    codec: str = "libx264"
    options: dict[str, str] = LOSSLESS


VP9 = {"lossless": "1", "cpu-used": "8"}
PLAIN = {
    "plain.mp4": Kind(),
    "422.mp4": Kind("yuv422p", down=1),
    "full.mp4": Kind("yuvj420p", full=True),
    "bt709.mp4": Kind(matrix="bt709", options={**LOSSLESS, "colorspace": "bt709"}),
    "odd_width.webm": Kind(size=(48, 67), codec="libvpx-vp9", options=VP9),
}
OTHERS = {
    "ten_bits.mp4": Kind("yuv420p10le", bits=10),
    "ten_bits_422.mp4": Kind("yuv422p10le", bits=10, down=1),
    "ten_bits_bt709.mp4": Kind(
        "yuv420p10le", bits=10, matrix="bt709", options={**LOSSLESS, "colorspace": "bt709"}
    ),
    "ten_bits_full.mp4": Kind(
        "yuv420p10le", bits=10, full=True, options={**LOSSLESS, "x264-params": "fullrange=on"}
    ),
    "444.mp4": Kind("yuv444p", across=1, down=1),
    "interlaced.mp4": Kind(fields=True, options={**LOSSLESS, "x264-params": "tff=1"}),
    "odd_height.webm": Kind(size=(47, 66), left=False, codec="libvpx-vp9", options=VP9),
    "odd.webm": Kind(size=(47, 67), left=False, codec="libvpx-vp9", options=VP9),
}
ROUNDING = {"ten_bits_full.mp4": 1.3}  # swscale takes 1020 for white, which is 1023


def scene(time: float, size: tuple[int, int]) -> np.ndarray:
    """Waves of red, green and blue, and discs of pure colours that move over them; (H, W, 3) in [0, 255]."""
    height, width = size
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [np.sin(x / 9 + time / 3), np.sin(y / 7 - time / 4), np.sin((x + y) / 11 + time / 5)]
    picture = 128 + 100 * np.stack(waves, -1)
    for number, colour in enumerate([(255, 0, 0), (0, 0, 255), (255, 0, 255)]):
        left, top = (
            (width * number / 3 + 3 * time) % width,
            height / 2 + height / 3 * np.sin(time / 4 + number),
        )
        picture[(x - left) ** 2 + (y - top) ** 2 < (height / 6) ** 2] = colour
    return picture


def to_planes(rgb: np.ndarray, kind: Kind) -> list[np.ndarray]:
    """(H, W, 3) -> luma and two planes of chroma, as an encoder stores them."""
    red, blue = MATRICES[kind.matrix]
    luma = rgb / 255 @ (red, 1 - red - blue, blue)
    chroma = [(rgb[..., 2] / 255 - luma) / 2 / (1 - blue), (rgb[..., 0] / 255 - luma) / 2 / (1 - red)]
    planes = [luma, *(smaller(plane, kind) for plane in chroma)]
    black, middle, luma_range, chroma_range = levels(kind)
    scaled = [black + luma_range * planes[0], *(middle + chroma_range * plane for plane in planes[1:])]
    return [plane.round().clip(0, 2**kind.bits - 1) for plane in scaled]


def levels(kind: Kind) -> tuple[float, float, float, float]:
    """Black, colourless, and the ranges of luma and chroma."""
    unit = 2.0 ** (kind.bits - 8)
    full = 2.0**kind.bits - 1
    return (0, 128 * unit, full, full) if kind.full else (16 * unit, 128 * unit, 219 * unit, 224 * unit)


def smaller(plane: np.ndarray, kind: Kind) -> np.ndarray:
    """Chroma at the size at which it is stored."""
    if kind.across == 2 and kind.left:
        wide = np.pad(plane, ((0, 0), (1, 1)), "edge")
        plane = ((wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]) / 4)[:, ::2]
    elif kind.across == 2:
        wide = np.pad(plane, ((0, 0), (0, plane.shape[1] % 2)), "edge")
        plane = (wide[:, ::2] + wide[:, 1::2]) / 2
    if kind.fields:
        top, bottom = plane[::2], plane[1::2]
        both = 0.75 * top[::2] + 0.25 * top[1::2], 0.25 * bottom[::2] + 0.75 * bottom[1::2]
        return np.stack(both, 1).reshape(-1, plane.shape[1])
    if kind.down == 2:
        high = np.pad(plane, ((0, plane.shape[0] % 2), (0, 0)), "edge")
        plane = (high[::2] + high[1::2]) / 2
    return plane


def larger(plane: np.ndarray, kind: Kind) -> np.ndarray:
    """Chroma at the size of the luma."""
    height, width = kind.size
    if kind.fields:
        fields = [interpolated(plane[f::2], height // 2, (0.25, 0.75)[f]) for f in (0, 1)]
        plane = np.stack(fields, 1).reshape(height, -1)
    elif kind.down == 2:
        plane = interpolated(plane, height, 0.5)
    return interpolated(plane.T, width, 0 if kind.left else 0.5).T if kind.across == 2 else plane


def interpolated(plane: np.ndarray, size: int, offset: float) -> np.ndarray:
    """Rows of a plane, row i of which lies at 2 i + offset, at 0, 1, ..., size - 1."""
    places = ((np.arange(size) - offset) / 2).clip(0, len(plane) - 1)
    before = places.astype(int)
    after = (before + 1).clip(max=len(plane) - 1)
    weight = (places - before)[:, None]
    return plane[before] * (1 - weight) + plane[after] * weight


def to_rgb(planes: list[np.ndarray], kind: Kind) -> np.ndarray:
    """The reference: planes -> (H, W, 3) in [0, 255], not rounded."""
    black, middle, luma_range, chroma_range = levels(kind)
    red, blue = MATRICES[kind.matrix]
    luma = (planes[0] - black) / luma_range
    u, v = ((larger(plane, kind) - middle) / chroma_range for plane in planes[1:])
    r, b = luma + 2 * (1 - red) * v, luma + 2 * (1 - blue) * u
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return (255 * np.stack([r, g, b], -1)).clip(0, 255)


def as_arrays(frame: VideoFrame) -> list[np.ndarray]:
    """Writable views of a frame's planes."""
    dtype = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    return [
        np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)[:, : plane.width]
        for plane in frame.planes
    ]


def write(path: Path, kind: Kind, num_frames: int = 3) -> list[np.ndarray]:
    """A video of a kind, encoded without loss; returns the pictures it was made from."""
    sources = [scene(number, kind.size) for number in range(num_frames)]
    if kind.fields:
        for number, source in enumerate(sources):
            source[1::2] = scene(number + 0.5, kind.size)[1::2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(kind.codec, rate=25, options=dict(kind.options))
        stream.height, stream.width, stream.pix_fmt = *kind.size, kind.pix_fmt
        for number, source in enumerate(sources):
            frame = VideoFrame(kind.size[1], kind.size[0], kind.pix_fmt)
            for target, plane in zip(as_arrays(frame), to_planes(source, kind), strict=True):
                target[:] = plane
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return sources


def decoded(path: Path) -> list[VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def as_before(frame: VideoFrame) -> np.ndarray:
    """As swscale converts a frame where nothing else is asked for."""
    return VideoReformatter().reformat(frame, format="rgb24", threads=1).to_ndarray()


def rms(one: object, other: object) -> float:
    return float(np.sqrt(np.mean(np.square(np.subtract(one, other)))))


@pytest.mark.parametrize("name", PLAIN)
def test_plain_frames_keep_their_bits(tmp_path: Path, name: str) -> None:
    """The table's nearest chroma: results of older versions stay, and other libraries have the same."""
    write(tmp_path / name, PLAIN[name])
    frames = decoded(tmp_path / name)
    assert all(is_plain(frame) for frame in frames)
    with PyAVReader(str(tmp_path / name)) as reader:
        assert np.array_equal(reader.read(range(3)), np.stack([as_before(frame) for frame in frames]))


@pytest.mark.parametrize("name", OTHERS)
def test_other_frames_are_nearest_to_their_source(tmp_path: Path, name: str) -> None:
    """Within rounding of the reference, and no farther from the source than what swscale does unasked."""
    kind = OTHERS[name]
    sources = write(tmp_path / name, kind)
    frames = decoded(tmp_path / name)
    reference = [to_rgb([plane.astype(float) for plane in as_arrays(frame)], kind) for frame in frames]
    with PyAVReader(str(tmp_path / name)) as reader:
        pictures = reader.read(range(3)).numpy()
    assert not any(is_plain(frame) for frame in frames)
    assert np.abs(pictures - np.stack(reference)).max() < ROUNDING.get(name, 0.6)
    assert rms(pictures, sources) < rms(reference, sources) + 0.1
    before = rms([as_before(frame) for frame in frames], sources)
    assert rms(pictures, sources) < (0.93 * before if kind.across == 2 else before + 1e-6)


def test_kinds_may_change_within_a_video() -> None:
    """Some broadcasts mix interlaced frames with others: each is converted as if it were alone."""
    frames = []
    for pix_fmt, bits in (("yuv420p", 8), ("yuv420p10le", 10)) * 2:
        frame = VideoFrame(64, 48, pix_fmt)
        for target, plane in zip(
            as_arrays(frame), to_planes(scene(len(frames), (48, 64)), Kind(bits=bits)), strict=True
        ):
            target[:] = plane
        frames.append(frame)
    picture = Picture(64, 48)
    for frame in frames:
        assert np.array_equal(picture(frame), Picture(64, 48)(frame))
        assert np.array_equal(picture(frame), as_before(frame)) == is_plain(frame)


@pytest.mark.parametrize("pix_fmt", ["rgb24", "bgra", "gray", "pal8", "gbrp", "yuv444p"])
def test_pictures_of_full_colour_keep_their_bits(pix_fmt: str) -> None:
    """GIF, PNG and the like have no chroma to interpolate, at any size."""
    rgb = VideoFrame.from_ndarray(scene(0, (47, 67)).astype(np.uint8), format="rgb24")
    frame = rgb.reformat(format="rgb8" if pix_fmt == "pal8" else pix_fmt)
    if pix_fmt == "pal8":
        indices = as_arrays(rgb.reformat(format="gray"))[0]
        frame = VideoFrame.from_ndarray(
            (np.ascontiguousarray(indices), np.arange(1024, dtype=np.uint8).reshape(256, 4)), format="pal8"
        )
    assert np.array_equal(Picture(67, 47)(frame), as_before(frame))


def test_frames_of_another_size_are_scaled() -> None:
    """An odd frame of 10 bits in a stream of another size: scaled, from its own samples alone."""
    kind = Kind("yuv420p10le", size=(47, 67), bits=10, left=False)
    frame = VideoFrame(67, 47, "yuv420p10le")
    for target, plane in zip(as_arrays(frame), to_planes(np.full((47, 67, 3), 200.0), kind), strict=True):
        target[:] = plane
    assert np.abs(Picture(64, 48)(frame).astype(int) - 200).max() <= 1
