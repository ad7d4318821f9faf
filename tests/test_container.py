"""Opening video files: regular files of video formats alone, their best stream, and whether their end is
missing.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import shown_numbers, write_video
from PIL import Image

from video_iresnet.data.decode.container import VideoFile, decode_errors, missing_bytes
from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.data.decode.reader import DecodeError, NoVideoError, TruncatedError


def all_numbers(path: Path) -> list[int]:
    with PyAVReader(str(path)) as reader:
        return shown_numbers(reader.read(range(len(reader))))


def remuxed(source: Path, target: Path, *, skip: range = range(0), **options: str) -> Path:
    """Copy the packets of a video into another container, without those of the numbers in `skip`."""
    with av.open(str(source)) as before, av.open(str(target), "w", options=options) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(before.demux(before.streams.video[0])):
            if packet.dts is not None and number not in skip:
                packet.stream = stream
                after.mux(packet)
    return target


def test_every_failure_of_ffmpeg_is_a_decode_error() -> None:
    """EOFError, DecoderNotFoundError, PatchWelcomeError and others are neither OSError nor ValueError."""
    for error in (*av.error.classes.values(), OSError, ValueError, IndexError, OverflowError):
        with pytest.raises(DecodeError), decode_errors():
            raise error(1, "reason")


def unreadable_files(folder: Path) -> dict[str, str]:
    """File name -> what the reason must say."""
    folder.mkdir(exist_ok=True)
    video = write_video(folder / "whole.mp4", 12)
    front = write_video(folder / "front.mp4", 12, front=True).read_bytes()
    webm = write_video(folder / "a.webm", 5, codec="libvpx-vp9").read_bytes()
    (folder / "webm.webm").write_bytes(webm[:50])
    (folder / "moov.mp4").write_bytes(front[: front.index(b"stsd") + 20])
    (folder / "noise.mp4").write_bytes(np.random.default_rng(1).bytes(300))
    (folder / "svg.mp4").write_text('<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>\n')
    for kind in ("png", "jpeg", "webp"):
        Image.new("RGB", (32, 32)).save(folder / f"{kind}.mp4", kind)
    (folder / "script.mp4").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nwhole.mp4\n")
    (folder / "subtitles.mp4").write_text("1\n00:00:00,000 --> 00:00:01,000\nwords\n")
    data = bytearray(video.read_bytes())
    codec = data.index(b"avc1", data.index(b"stsd"))
    data[codec : codec + 4] = b"zzzz"
    (folder / "codec.mp4").write_bytes(data)
    os.mkfifo(folder / "fifo.mp4")
    (folder / "folder.mp4").mkdir()
    (folder / "device.mp4").symlink_to("/dev/zero")
    return {
        "webm.webm": ".",
        "moov.mp4": ".",
        "noise.mp4": "Invalid data",
        "svg.mp4": ".",
        "png.mp4": "it is an image",
        "jpeg.mp4": "it is an image",
        "webp.mp4": "it is an image",
        "script.mp4": "not a video, or of a format that is not read",
        "playlist.mp4": ".",
        "subtitles.mp4": "not a video, or of a format that is not read",
        "codec.mp4": "codec",
        "fifo.mp4": "it is a named pipe, not a file",
        "folder.mp4": "it is a folder, not a file",
        "device.mp4": "it is a device, not a file",
    }


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    for name, reason in unreadable_files(tmp_path).items():
        begin = time.monotonic()
        with pytest.raises(DecodeError, match=reason) as caught:
            PyAVReader(str(tmp_path / name))
        assert str(caught.value), name
        assert "\n" not in str(caught.value), name
        assert time.monotonic() - begin < 5, name


def test_a_name_is_never_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is called, and no other file is opened, whatever a list calls a video, except for the stores of
    runtime/stores.py.
    """
    write_video(tmp_path / "a.ts", 12)
    monkeypatch.chdir(tmp_path)
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)

        def answer() -> None:
            try:
                while True:
                    calls.append(server.accept()[0].close())
            except TimeoutError:
                pass

        thread = threading.Thread(target=answer)
        thread.start()
        port = server.getsockname()[1]
        for name in (
            f"HTTP://127.0.0.1:{port}/a.ts",
            f"rtmp://127.0.0.1:{port}/a.ts",
            f"tcp://127.0.0.1:{port}",
            "concat:a.ts|a.ts",
            "subfile,,start,0,end,5000,,:a.ts",
            "pipe:0",
            "data:,a",
        ):
            with pytest.raises(DecodeError, match="No such file"):
                VideoFile(name)
        thread.join()
    assert not calls


@pytest.mark.parametrize(
    "name", ["12:30.mp4", "file:a.mp4", "-a.mp4", "a b%03d.mp4", "http:a.mp4", "a\udcff.mp4"]
)
def test_a_name_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_video(tmp_path / "plain.mp4", 12).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert all_numbers(Path(name)) == list(range(12))


def test_metadata_that_are_not_utf8(tmp_path: Path) -> None:
    """Phones write the names of places in their own encoding."""
    path = tmp_path / "a.mp4"
    with av.open(str(write_video(tmp_path / "plain.mp4", 12))) as before, av.open(str(path), "w") as after:
        after.metadata["title"] = "aaaa"
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(before.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                after.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"aaaa", b"\xff\xe9\xfe\xff"))
    assert all_numbers(path) == list(range(12))


def with_cover(path: Path, source: Path, *, codec: str = "png", is_attached: bool, is_first: bool) -> Path:
    """The video beside a still picture, which stands before or behind it."""
    with av.open(str(source)) as before, av.open(str(path), "w") as after:
        video = None if is_first else after.add_stream_from_template(before.streams.video[0])
        cover = after.add_stream(codec, rate=25)
        cover.width, cover.height = 320, 240
        cover.pix_fmt = "rgb24" if codec == "png" else "yuvj420p"
        if is_attached:
            cover.disposition = av.stream.Disposition.attached_pic
        video = video or after.add_stream_from_template(before.streams.video[0])
        frame = av.VideoFrame.from_ndarray(np.full((240, 320, 3), 200, np.uint8), format="rgb24")
        after.mux([*cover.encode(frame), *cover.encode()])
        for packet in before.demux(before.streams.video[0]):
            if packet.dts is not None:
                packet.stream = video
                after.mux(packet)
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "png"), ("a.mp4", "mjpeg"), ("a.mkv", "mjpeg")])
@pytest.mark.parametrize("is_attached", [False, True])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_cover_is_not_the_video(
    tmp_path: Path, name: str, codec: str, is_attached: bool, is_first: bool
) -> None:
    source = write_video(tmp_path / "source.mp4", 12)
    path = with_cover(tmp_path / name, source, codec=codec, is_attached=is_attached, is_first=is_first)
    assert all_numbers(path) == list(range(12))


def test_a_cover_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=16000)
        cover = container.add_stream("png", rate=25)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode()])
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux([*sound.encode(frame), *sound.encode()])
    with pytest.raises(NoVideoError, match="no video stream, only audio, cover picture") as caught:
        PyAVReader(str(tmp_path / "a.m4a"))
    assert caught.value.problem == "no video"


def test_an_avi_with_dropped_frames_is_whole(tmp_path: Path) -> None:
    """Capture programs write an empty chunk, or none but a count, for a frame they dropped."""
    source = write_video(tmp_path / "source.avi", 40, codec="mpeg4", gop=1)
    path = remuxed(source, tmp_path / "a.avi", skip=range(1, 3))
    with av.open(str(path)) as container:
        claimed = container.streams.video[0].frames
    assert claimed == 40
    assert all_numbers(path) == [0, *range(3, 40)]
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"00dc", 0, whole.rindex(b"idx1")) - 10])
    with pytest.raises(TruncatedError, match=r"truncated: \d+ of 40 frames"):
        PyAVReader(str(path))


def test_an_avi_that_lost_one_frame_at_its_end_is_truncated(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 60, codec="mpeg4")
    whole = path.read_bytes()
    index = whole.rindex(b"idx1")
    assert missing_bytes(str(path)) == 0
    path.write_bytes(whole[:index])  # all frames are there
    assert all_numbers(path) == list(range(60))
    path.write_bytes(whole[: whole.rindex(b"00dc", 0, index)])
    with pytest.raises(TruncatedError, match="truncated: 59 of 60 frames are there"):
        PyAVReader(str(path))


def test_a_matroska_file_of_zeros_at_its_end_is_truncated(tmp_path: Path) -> None:
    """What a download leaves that reserved its room at the beginning."""
    path = write_video(tmp_path / "a.mkv", 100)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(TruncatedError, match=r"truncated: the last frame ends at \d\.\d\d s of 4\.00 s"):
        PyAVReader(str(path))


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.avi", "a.mp4"])
def test_missing_bytes_are_counted_by_the_sizes_in_headers(tmp_path: Path, name: str) -> None:
    """MP4 has none that say it."""
    codec = "libvpx-vp9" if name.endswith("webm") else "mpeg4"
    write_video(tmp_path / name, 12, codec=codec)
    whole = (tmp_path / name).read_bytes()
    assert missing_bytes(str(tmp_path / name)) == 0
    (tmp_path / name).write_bytes(whole[:-77])
    assert missing_bytes(str(tmp_path / name)) == (0 if name == "a.mp4" else 77)
