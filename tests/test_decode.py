"""PyAV: it decodes no more than it must, goes on after errors, and says clearly why a file cannot be read."""

from __future__ import annotations

import ctypes
import gc
import weakref
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import shown_numbers, write_video

from video_iresnet.data.decode import container, open_video, pyav
from video_iresnet.data.decode.backends import BACKENDS
from video_iresnet.data.decode.container import missing_bytes
from video_iresnet.data.decode.picture import Picture
from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.data.decode.reader import DecodeError
from video_iresnet.data.records import Record


def frames_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the time of each frame that comes out of the decoder."""
    times: list[int] = []
    decode = PyAVReader._decode
    monkeypatch.setattr(
        PyAVReader,
        "_decode",
        lambda self, *arguments: (times.append(item[0]) or item for item in decode(self, *arguments)),
    )
    return times


def test_a_seek_decodes_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the frames from the keyframe on are decoded, and only the wanted ones are converted."""
    path = write_video(tmp_path / "a.mp4", 240, gop=12)
    converted = []
    decoded, picture = frames_decoded(monkeypatch), Picture.__call__
    monkeypatch.setattr(Picture, "__call__", lambda self, frame: converted.append(1) or picture(self, frame))
    with PyAVReader(str(path)) as reader:
        assert shown_numbers(reader.read([200, 204, 208])) == [200, 204, 208]
    assert len(converted) == 3
    assert len(decoded) <= 24


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.mp4", "mpeg4")])
def test_frames_that_nobody_needs_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str
) -> None:
    path = str(
        write_video(
            tmp_path / name,
            200,
            codec=codec,
            gop=250,
            options={"bf": "3"} if codec == "libx264" else {"bf": "2"},
        )
    )
    decoded = frames_decoded(monkeypatch)
    wanted = [41, 66, 91, 116, 141, 166]
    with PyAVReader(path) as reader:
        fast = reader.read(wanted)
    skipping = len(decoded)
    decoded.clear()
    monkeypatch.setattr(pyav, "SAYS_UNREFERENCED", set())
    with PyAVReader(path) as reader:
        assert torch.equal(reader.read(wanted), fast)
    assert skipping < 0.7 * len(decoded)


def test_a_wanted_frame_that_was_skipped_is_decoded_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a decoder takes for unreferenced, the answer is complete."""
    path = str(write_video(tmp_path / "a.mp4", 60, gop=250, options={"bf": "3"}))
    monkeypatch.setattr(PyAVReader, "_is_unwanted", lambda self, packet: True)
    with PyAVReader(path) as reader:
        assert shown_numbers(reader.read(range(60))) == list(range(60))


def test_reading_on_costs_no_second_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ascending frames in several calls: each frame leaves the decoder once at most, though frames between
    the wanted ones are skipped.
    """
    path = str(write_video(tmp_path / "a.mp4", 120, gop=250, options={"bf": "3", "b-pyramid": "normal"}))
    with PyAVReader(path) as reader:
        everything = reader.read(range(120))
    decoded = frames_decoded(monkeypatch)
    with PyAVReader(path) as reader:
        for indices in ([3, 9, 17], [18, 19, 20], [21], [40, 50], [51, 53, 80], [119]):
            assert torch.equal(reader.read(indices), everything[indices])
    assert len(decoded) == len(set(decoded))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = str(write_video(tmp_path / name, 60, gop=12))
    opened = []
    monkeypatch.setattr(
        container.av,
        "open",
        lambda name, open_file=av.open, **options: opened.append(name) or open_file(name, **options),
    )
    with PyAVReader(path) as reader:
        assert shown_numbers(reader.read([50, 2, 31])) == [50, 2, 31]
    assert opened == [f"file:{path}"]


def test_an_error_leaves_a_reader_that_can_go_on(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 60, size=(96, 128), gop=12, options={"sc_threshold": "0"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        damaged = next(packet for packet in container.demux(video=0) if packet.is_keyframe and packet.pts)
        data[damaged.pos : damaged.pos + 200] = bytes(200)
    path.write_bytes(data)
    with PyAVReader(str(path)) as reader:
        with pytest.raises(DecodeError, match="Invalid data"):
            reader.read([3, 14])
        assert shown_numbers(reader.read([3, 7, 30])) == [3, 7, 30]


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
    with (
        av.open(str(folder / "whole.mp4")) as source,
        av.open(str(folder / "front.mp4"), "w", options={"movflags": "faststart"}) as target,
    ):
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


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_matroska_files_of_unknown_size_are_whole(tmp_path: Path, name: str) -> None:
    """A recording that was never finished has no size in its header, so that its end cannot be missed."""
    codec = "libvpx-vp9" if name == "a.webm" else "libx264"
    assert missing_bytes(str(write_video(tmp_path / f"whole_{name}", 30, codec=codec))) == 0
    path = write_video(tmp_path / name, 30, codec=codec, live=True)
    assert missing_bytes(str(path)) == 0
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert missing_bytes(str(path)) == 0
    with PyAVReader(str(path)) as reader:
        assert 5 < len(reader) < 30
        assert shown_numbers(reader.read(range(len(reader)))) == list(range(len(reader)))


def test_not_matroska(tmp_path: Path) -> None:
    for data in (b"", b"\0", b"not Matroska at all", b"\x1aE\xdf\xa3\x84"):
        (tmp_path / "a").write_bytes(data)
        assert missing_bytes(str(tmp_path / "a")) == 0


HEAP = ["arena", "a", "b", "c", "mapped", "d", "e", "used", "free", "top"]


class Heap(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in HEAP]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc alone tells its memory")
def test_reading_parts_of_videos_leaks_no_memory(tmp_path: Path) -> None:
    """Bytes in use; a leak of 100 a video would fill the memory of a worker in a long training."""
    path = str(write_video(tmp_path / "a.mp4", 30))
    heap = ctypes.CDLL(None).mallinfo2
    heap.restype = Heap

    def used_after(videos: int) -> int:
        for _ in range(videos):
            with PyAVReader(path) as reader:
                reader.read([3, 5])
        gc.collect()
        return int(heap().used + heap().mapped)

    begin = used_after(50)
    assert (used_after(200) - begin) / 200 < 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_reader_is_freed_at_once(tmp_path: Path, backend: str) -> None:
    """Its decoder would else wait for Python's garbage collector, which does not know of its megabytes."""
    pytest.importorskip({"pyav": "av"}.get(backend, backend))
    record = Record("a", str(write_video(tmp_path / "a.mp4", 30)), 0)
    gc.disable()
    try:
        with open_video(record, backend) as reader:
            reader.read([3, 5])
        freed = weakref.ref(reader)
        del reader
        assert freed() is None
    finally:
        gc.enable()
