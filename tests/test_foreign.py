"""The files of foreign.py are what their names say."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

import av
import foreign
import numpy as np
import pytest
import torch
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from conftest import shown_numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


def built(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        (foreign.KINDS[name].build if name in foreign.KINDS else foreign.HOSTILE[name])(path)
    return path


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    with av.open(str(path), metadata_errors="replace") as container:
        streams = [
            stream
            for stream in container.streams.video
            if Disposition.attached_pic not in stream.disposition and stream.codec_context.name != "mjpeg"
        ]
        defaults = [stream for stream in streams if Disposition.default in stream.disposition]
        stream = (defaults or streams)[0]
        stream.codec_context.thread_count = 1
        yield container, stream


def packets(path: Path) -> list[Packet]:
    with opened(path) as (container, stream):
        return [packet for packet in container.demux(stream) if packet.size]


def frames(path: Path) -> list[VideoFrame]:
    """Of decoding from start to end; what cannot be decoded is left out."""
    decoded = []
    with opened(path) as (container, stream):
        for packet in container.demux(stream):
            with contextlib.suppress(av.FFmpegError):
                decoded += packet.decode()
    return decoded


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in frames(path)]))


@pytest.mark.parametrize("name", foreign.KINDS)
def test_frames_show_their_numbers_in_colour(folder: Path, tmp_path: Path, name: str) -> None:
    path = built(folder, name)
    shown = pixels(path)
    if name.startswith("mirrored"):
        shown = shown.flip(2 if name == "mirrored_across.mp4" else 1)
    numbers = foreign.KINDS[name].numbers
    if numbers is not None:
        assert shown_numbers(shown) == list(numbers)
        reference = foreign.coloured_frame(numbers[5], (shown.shape[1], shown.shape[2])).astype(int)
        if name != "two_videos.ts":
            assert abs(shown[5].numpy() - reference).mean() < 30
        chroma = shown[5].float().std(-1)
        assert chroma[2].mean() > 30
    assert built(tmp_path, name).read_bytes() == path.read_bytes()
    assert path.stat().st_size < 150_000
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["h264_b_frames.avi", "h264_b_frames.wmv"])
def test_decoding_times_alone(folder: Path, name: str) -> None:
    times = [frame.pts for frame in frames(built(folder, name))]
    assert times != sorted(times)


def vops(packet: Packet) -> str:
    """The pictures of an MPEG-4 packet."""
    return "".join("IPBS"[part[0] >> 6] for part in bytes(packet).split(b"\0\0\1\xb6")[1:])


def test_mpeg4_in_avi(folder: Path) -> None:
    assert [vops(packet) for packet in packets(built(folder, "mpeg4_b_frames.avi"))[:5]] == list("IPBBP")
    path = built(folder, "packed_xvid.avi")
    packed = packets(path)
    assert [vops(packet) for packet in packed[:5]] == ["I", "PB", "B", "P", "PB"]
    assert packed[3].size == 6
    assert len(packed) == 60
    assert b"DivX503b1393p" in bytes(packed[0])
    assert b"XVID" in path.read_bytes()[:400]


def test_dropped_frames(folder: Path) -> None:
    path = built(folder, "dropped_frames.avi")
    assert [packet.dts for packet in packets(path)] == [0, *range(3, 98)]
    with opened(path) as (_, stream):
        assert stream.frames == 98  # chunks, with the empty ones


def nal_types(packet: Packet, codec: str = "h264") -> list[int]:
    """Of the units of a packet, each after its length."""
    data, types = bytes(packet), []
    while data:
        size = int.from_bytes(data[:4], "big")
        types.append(data[4] & 31 if codec == "h264" else data[4] >> 1 & 63)
        data = data[4 + size :]
    return types


@pytest.mark.parametrize("name", ["h264_intra_refresh.mp4", "h264_open_gop.mp4"])
def test_keyframes_that_are_no_idr(folder: Path, name: str) -> None:
    found = packets(built(folder, name))
    assert 5 in nal_types(found[0])
    keyframes = [packet for packet in found[1:] if packet.is_keyframe]
    assert len(keyframes) > 3
    assert not any(5 in nal_types(packet) for packet in keyframes)


def test_old_x264_is_decoded_by_another_rule(folder: Path, tmp_path: Path) -> None:
    path = built(folder, "h264_444_old_x264.mp4")
    today = tmp_path / "today.mp4"
    today.write_bytes(path.read_bytes().replace(b"x264 - core 148", b"x264 - core 165"))
    assert not torch.equal(pixels(path), pixels(today))
    assert shown_numbers(pixels(today)) == list(range(60))


def test_the_start_of_an_open_gop(folder: Path) -> None:
    for name in ("hevc_from_cra.mp4", "hevc_from_cra.mkv"):
        first, *rest = packets(built(folder, name))
        assert nal_types(first, "hevc")[-1] == 21
        assert {nal_types(packet, "hevc")[0] for packet in rest[:3]} <= {8, 9}
        assert all(packet.pts < first.pts for packet in rest[:3])
    for name in ("mpeg2_from_open_gop.mkv", "mpeg2_from_open_gop.ts", "mpeg2_from_open_gop.mpg"):
        found = packets(built(folder, name))
        assert found[0].is_keyframe
        assert len(found) == 48 + 2


@pytest.mark.parametrize("name", [name for name in foreign.KINDS if "before_keyframe" in name])
def test_the_first_packet_is_no_keyframe(folder: Path, name: str) -> None:
    found = packets(built(folder, name))
    assert [packet.is_keyframe for packet in found[:6]] == [False] * 5 + [True]


def test_times_that_jump(folder: Path) -> None:
    times = [packet.dts for packet in packets(built(folder, "joined.ts"))]
    assert times != sorted(times)
    times = [packet.pts for packet in packets(built(folder, "lost_frames.mkv"))]
    assert len(times) == 58
    assert times[-1] == 119 * 40


def test_streams(folder: Path) -> None:
    with opened(built(folder, "still_first.mp4")) as (container, stream):
        assert [s.codec_context.name for s in container.streams] == ["mjpeg", "h264"]
        assert container.streams.best("video") == stream
    with opened(built(folder, "cover_first.mp4")) as (container, _):
        assert Disposition.attached_pic in container.streams[0].disposition
        assert container.streams[1].codec_context.name == "h264"
    for name in foreign.KINDS:
        if name.startswith("two_videos"):
            with opened(built(folder, name)) as (container, stream):
                assert [s.width for s in container.streams.video] == [64, 128]
                assert container.streams.best("video") == stream


def test_metadata_that_are_not_utf8(folder: Path) -> None:
    with pytest.raises(UnicodeDecodeError):
        av.open(str(built(folder, "latin1_title.3gp")))


def test_kinds_of_pictures(folder: Path) -> None:
    for name in ("h264_ten_bits.mp4", "hevc_ten_bits.mp4", "av1_ten_bits.webm"):
        assert frames(built(folder, name))[0].format.name == "yuv420p10le"
    for name in foreign.KINDS:
        assert frames(built(folder, name))[0].interlaced_frame == ("interlaced" in name)
        assert (frames(built(folder, name))[0].width == 67) == ("odd" in name)


def test_hostile_files(tmp_path: Path) -> None:
    for name in foreign.HOSTILE:
        assert built(tmp_path, name).exists()
    with av.open(str(tmp_path / "late_stream.ts")) as container:
        assert len(container.streams) == 1
        with contextlib.suppress(IndexError):  # where PyAV reads behind the end of its list of streams
            list(container.demux(video=0))
    for name in ("unknown_codec.mp4", "unknown_codec.mkv"):
        with av.open(str(tmp_path / name)) as container:
            assert container.streams.video[0].codec_context is None
    for name in ("head.webm", "cut_inside_moov.mp4", "random_bytes.mp4"):
        with pytest.raises(av.FFmpegError):
            av.open(str(tmp_path / name))
    assert stat.S_ISFIFO((tmp_path / "fifo.mp4").stat().st_mode)
    assert (tmp_path / "dev_zero.mp4").readlink() == Path("/dev/zero")
