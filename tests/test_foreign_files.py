"""Files as other programs and devices make them: any frames, in any order of calls, are those that decoding
from the start gives.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import foreign
import numpy as np
import pytest
import torch
from av.packet import Packet
from conftest import shown_numbers, write_video
from test_decode import frames_decoded
from test_foreign import built, frames, packets

from video_iresnet.data.decode import numbering
from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.data.decode.reader import DecodeError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


def assert_sequential(path: Path) -> None:
    """Single frames, clips and whole videos, by one reader and by new ones."""
    rng = random.Random(0)
    with PyAVReader(str(path)) as reader:
        everything = [reader._picture(frame).copy() for frame in frames(path)]
        num_frames = len(everything)
        assert len(reader) == num_frames
        single = [[index] for index in rng.sample(range(num_frames), min(12, num_frames))]
        clips = [sorted(rng.randrange(num_frames) for _ in range(4)) for _ in range(4)]
        for indices in [*single, *clips, list(range(num_frames))]:
            pictures = reader.read(indices).numpy()
            for index, picture in zip(indices, pictures, strict=True):
                assert np.array_equal(picture, everything[index]), (indices, index)
    for index in (num_frames // 3, num_frames - 1):
        with PyAVReader(str(path)) as reader:
            assert np.array_equal(reader.read([index])[0].numpy(), everything[index]), index


# That one is noise, whose errors are concealed in another way at every reading.
@pytest.mark.parametrize("name", [name for name in foreign.KINDS if name != "h264_444_old_x264.mp4"])
def test_any_frames_are_those_of_sequential_decoding(folder: Path, name: str) -> None:
    path = built(folder, name)
    numbers = foreign.KINDS[name].numbers
    with PyAVReader(str(path)) as reader:
        if numbers is not None:
            assert shown_numbers(reader.read(range(len(reader)))) == list(numbers)
    assert_sequential(path)


def test_old_x264_is_read_by_its_own_rule_after_a_seek(folder: Path, tmp_path: Path) -> None:
    """The first packet alone says that x264 is old; today's, read by the old rule, is noise."""
    path = built(folder, "h264_444_old_x264.mp4")
    today = tmp_path / "today.mp4"
    today.write_bytes(path.read_bytes().replace(b"x264 - core 148", b"x264 - core 165"))
    with PyAVReader(str(path)) as old, PyAVReader(str(today)) as new:
        differences = (old.read(range(60)).float() - new.read(range(60)).float()).abs().mean((1, 2, 3))
        noise = [index for index in range(20, 60) if differences[index] > 40][::4]
        assert noise
        for index in noise:
            with PyAVReader(str(path)) as fresh:
                picture = fresh.read([index]).float()
            assert (picture - new.read([index]).float()).abs().mean() > 20


@pytest.mark.parametrize(
    ("name", "num_unshown"),
    [
        ("hevc_from_cra.mkv", 3),
        ("mpeg2_from_open_gop.ts", 2),
        ("h264_before_keyframe.mp4", 5),
        ("mpeg2_before_keyframe.mpg", 7),
        ("h264_open_gop.mp4", 0),
        ("joined.ts", 0),
    ],
)
def test_frames_that_no_decoder_shows_are_counted_apart(folder: Path, name: str, num_unshown: int) -> None:
    with PyAVReader(str(built(folder, name))) as reader:
        assert reader.num_unshown == num_unshown


@pytest.mark.parametrize("name", ["h264.ts", "mpeg2.ts", "hevc_from_cra.ts", "h264_open_gop.mp4", "h264.mkv"])
def test_a_seek_into_foreign_files_decodes_little(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = built(folder, name)
    decoded = frames_decoded(monkeypatch)
    with PyAVReader(str(path)) as reader:
        reader.read([len(reader) - 2])
    assert len(decoded) <= 14


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9")])
def test_a_damaged_start_leaves_the_rest(tmp_path: Path, name: str, codec: str) -> None:
    """FFmpeg leaves out the frames of H.264 that lack their keyframe, and fails on those of VP9."""
    path = write_video(tmp_path / name, 60, size=(96, 128), codec=codec, options={"sc_threshold": "0"})
    data = bytearray(path.read_bytes())
    place = data.index(bytes(packets(path)[0]))
    data[place : place + 200] = bytes(200)
    path.write_bytes(data)
    with PyAVReader(str(path)) as reader:
        if codec == "libx264":
            assert (len(reader), reader.num_unshown) == (48, 12)
            assert shown_numbers(reader.read([0, 30])) == [12, 42]
        else:
            with pytest.raises(DecodeError, match="Invalid data"):
                reader.read([0])
            assert shown_numbers(reader.read([30, 59])) == [30, 59]


@pytest.mark.parametrize(("codec", "options"), [("libx264", {"bf": "3"}), ("mpeg2video", {"bf": "2"})])
def test_times_of_decoding_in_a_container_of_times_of_presentation(
    tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    """Muxers that were given no presentation times store what they have."""
    source = foreign.write(tmp_path / "source.mkv", codec=codec, options=options)

    def decoding_times(copied: list[Packet]) -> Iterable[Packet]:
        for number, packet in enumerate(copied):
            packet.pts = packet.dts = 40 * number
            yield packet

    path = foreign.remux(source, tmp_path / "a.mkv", decoding_times)
    for index in (1, 2, 3, 40):
        with PyAVReader(str(path)) as reader:
            assert shown_numbers(reader.read([index])) == [index]
    assert_sequential(path)


def test_an_order_that_shows_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-frames come only after the frames by which a file was judged."""
    monkeypatch.setattr(numbering, "DOUBTFUL", 1)
    source = foreign.write(tmp_path / "source.mkv", options={"bf": "3"})

    def decoding_times(copied: list[Packet]) -> Iterable[Packet]:
        for number, packet in enumerate(copied):
            packet.pts = packet.dts = 40 * number
            yield packet

    path = foreign.remux(source, tmp_path / "a.mkv", decoding_times)
    with PyAVReader(str(path)) as reader:
        assert shown_numbers(reader.read(range(60))) == list(range(60))
        assert reader.is_counted


def test_a_stream_that_appears_in_the_middle(folder: Path) -> None:
    """PyAV ends the reading of such a file with an IndexError."""
    path = built(folder, "late_stream.ts")
    with PyAVReader(str(path)) as reader:
        assert len(reader) > 50
        assert torch.equal(reader.read([49, 3])[0], reader.read([49])[0])


def test_the_times_of_frames(tmp_path: Path, folder: Path) -> None:
    times = [0, 40, 50, 130, 140, 300]
    with PyAVReader(str(write_video(tmp_path / "a.mkv", 6, times=times))) as reader:
        assert [1000 * second for second in reader.seconds] == times
    with PyAVReader(str(built(folder, "packed_xvid.avi"))) as reader:
        assert [25 * second for second in reader.seconds] == list(range(60))
        assert reader.fps == 25


@pytest.mark.parametrize(
    ("name", "size"),
    [("mpeg1.mpg", 3102), ("mpeg2_from_open_gop.ts", 4877), ("h264_before_keyframe.ts", 8136)],
)
def test_a_frame_that_is_cut_short_is_patched_up_as_in_sequential_decoding(
    folder: Path, tmp_path: Path, name: str, size: int
) -> None:
    """The decoder fills what is missing from frames before it, which a seek or a skip would leave out."""
    path = tmp_path / name
    path.write_bytes(built(folder, name).read_bytes()[:size])
    assert frames(path)[-1].is_corrupt
    assert_sequential(path)
