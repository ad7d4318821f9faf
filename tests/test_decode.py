"""Decoding real files: the same frames whatever the codec, the container and the order of reading; clear reasons for broken ones."""

from __future__ import annotations

import random
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import shown_numbers, write_video

from video_iresnet.data.decode_pyav import PyAVReader
from video_iresnet.data.reader import DecodeError

VARIABLE = [0, 40, 50, 130, 140, 300, 310, 320, 480, 500, 501, 600, 777, 800, 900, 1000, 1010, 1200, 1210, 1300]
KINDS = {
    "h264_long_gop.mp4": {"gop": 250},
    "h264_short_gop.mp4": {"gop": 6},
    "h264.mkv": {},
    "mpeg4.avi": {"codec": "mpeg4"},
    "odd.mkv": {"size": (46, 66)},
    "variable.mp4": {"times": VARIABLE, "num_frames": 20},
    "one.mp4": {"num_frames": 1},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_by_its_number(tmp_path: Path, name: str) -> None:
    options = {"num_frames": 60, **KINDS[name]}
    num_frames = options.pop("num_frames")
    path = write_video(tmp_path / name, num_frames, **options)
    with PyAVReader(str(path)) as reader:
        assert len(reader) == num_frames
        assert shown_numbers(reader.read(range(num_frames))) == list(range(num_frames))
        some = [random.Random(0).randrange(num_frames) for _ in range(40)]
        assert shown_numbers(reader.read(some)) == some
        for index in some:
            assert shown_numbers(reader.read([index])) == [index]


def test_pixels_are_the_same_from_every_start(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", 50, gop=10))
    with PyAVReader(path) as reader:
        everything = reader.read(range(50))
    assert everything.dtype == torch.uint8
    assert everything.shape == (50, 48, 64, 3)
    for index in (0, 9, 10, 11, 33, 49):
        with PyAVReader(path) as reader:
            assert torch.equal(reader.read([index])[0], everything[index])


def test_a_seek_decodes_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the frames from the keyframe on are decoded, and only the wanted ones are converted."""
    path = write_video(tmp_path / "a.mp4", 240, gop=12)
    decoded, converted = [], []
    decode, convert = PyAVReader._decode, PyAVReader._convert
    monkeypatch.setattr(PyAVReader, "_decode", lambda self: (decoded.append(1) or item for item in decode(self)))
    monkeypatch.setattr(PyAVReader, "_convert", lambda self, frame: converted.append(1) or convert(self, frame))
    with PyAVReader(str(path)) as reader:
        reader.read([200, 204, 208])
    assert len(converted) == 3
    assert len(decoded) <= 24


def test_a_stream_that_does_not_start_at_0(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.mkv", 30, times=[5000 + 40 * i for i in range(30)])
    with PyAVReader(str(path)) as reader:
        assert shown_numbers(reader.read([0, 29, 7])) == [0, 29, 7]


def broken_files(folder: Path) -> dict[str, str]:
    """File name -> what the reason must say."""
    whole = write_video(folder / "whole.mp4", 60, size=(96, 128)).read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("not a video\n" * 100)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(folder / "whole.mp4")) as source, av.open(str(folder / "front.mp4"), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    front = (folder / "front.mp4").read_bytes()
    (folder / "front.mp4").write_bytes(front[: len(front) * 2 // 3])
    return {
        "empty.mp4": "Invalid data",
        "truncated.mp4": "Invalid data",
        "text.mp4": "Invalid data",
        "noise.mp4": "Invalid data",
        "audio.mp4": "no video stream",
        "front.mp4": r"truncated: \d+ of 60 frames",
        "absent.mp4": "No such file",
    }


def test_broken_files_say_why(tmp_path: Path) -> None:
    for name, reason in broken_files(tmp_path).items():
        with pytest.raises(DecodeError, match=reason), PyAVReader(str(tmp_path / name)) as reader:
            reader.read(range(len(reader)))


def test_packets_without_times_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MPEG-4 with B-frames in AVI has packets whose presentation time is unknown."""
    path = tmp_path / "b.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"bf": "2", "g": "12", "qscale": "2"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        from conftest import numbered_frame

        for number in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number, (48, 64)), format="rgb24")))
        container.mux(stream.encode())
    with PyAVReader(str(path)) as reader:
        assert len(reader) == 40
        assert shown_numbers(reader.read([0, 39, 3, 20, 21])) == [0, 39, 3, 20, 21]
