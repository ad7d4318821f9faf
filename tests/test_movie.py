"""Videos that are written: times, sizes, and sound in step with the pictures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import VARIABLE, numbered_frame, shown_numbers

from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.inference.movie import write_movie
from video_iresnet.runtime.errors import InputError

RATE = 44_100


def with_beep(
    path: Path, at: float, *, seconds: float = 2.0, codec: str = "aac", format: str = "mp4"
) -> Path:
    """Two seconds of 25 frames per second with silence but for a tenth of a second of sound."""
    with av.open(str(path), "w", format=format) as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        sound = container.add_stream(codec, rate=RATE, layout="mono")
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, (48, 64)), format="rgb24")
            container.mux(video.encode(frame))
        time = np.arange(2 * RATE) / RATE
        wave = np.where((time >= at) & (time < at + 0.1), np.sin(2 * np.pi * 880 * time), 0)
        for start in range(0, len(wave), 1024):
            part = av.AudioFrame.from_ndarray(
                wave[None, start : start + 1024].astype(np.float32), format="fltp", layout="mono"
            )
            part.sample_rate, part.pts, part.time_base = RATE, start, Fraction(1, RATE)
            container.mux(sound.encode(part))
        container.mux(video.encode())
        container.mux(sound.encode())
    return path


def beep(path: Path) -> tuple[float, float]:
    """The first and the last time at which something is heard."""
    with av.open(str(path)) as container:
        heard = [
            frame.time + i / frame.sample_rate
            for frame in container.decode(audio=0)
            for i in np.flatnonzero(np.abs(frame.to_ndarray()).max(0) > 0.1)
        ]
    return min(heard), max(heard)


@pytest.mark.parametrize(("codec", "format"), [("aac", "mp4"), ("mp2", "matroska"), ("pcm_s16le", "avi")])
def test_sound_stays_in_step(tmp_path: Path, codec: str, format: str) -> None:
    source = with_beep(tmp_path / "source", 1.2, codec=codec, format=format)
    with PyAVReader(str(source)) as reader:
        pictures = ((i / 25, reader.read([i])[0].numpy()) for i in range(len(reader)))
        write_movie(tmp_path / "copy.mp4", pictures, rate=25, sound_of=reader)
    assert beep(tmp_path / "copy.mp4") == pytest.approx((1.2, 1.3), abs=0.04)
    with PyAVReader(str(tmp_path / "copy.mp4")) as reader:
        assert shown_numbers(reader.read(range(50))) == list(range(50))


def test_sound_starts_with_the_first_picture(tmp_path: Path) -> None:
    """A recording whose clock starts at 60 s, and whose sound begins before its pictures."""
    source = with_beep(tmp_path / "source.mp4", 1.2)
    late = tmp_path / "late.mkv"
    with av.open(str(source)) as given, av.open(str(late), "w") as container:
        streams = [container.add_stream_from_template(stream) for stream in given.streams]
        for packet in given.demux():
            if packet.dts is not None:
                shift = 60 if packet.stream.type == "audio" else Fraction(121, 2)
                packet.pts += int(shift / packet.time_base)
                packet.dts += int(shift / packet.time_base)
                packet.stream = streams[packet.stream_index]
                container.mux(packet)
    with PyAVReader(str(late)) as reader:
        pictures = ((i / 25, reader.read([i])[0].numpy()) for i in range(len(reader)))
        write_movie(tmp_path / "copy.mp4", pictures, rate=25, sound_of=reader)
    assert beep(tmp_path / "copy.mp4") == pytest.approx((0.7, 0.8), abs=0.04)


def test_times_and_odd_sizes_are_kept(tmp_path: Path) -> None:
    pictures = ((time / 1000, numbered_frame(i, (49, 65))) for i, time in enumerate(VARIABLE))
    write_movie(tmp_path / "a.mp4", pictures, rate=15)
    with PyAVReader(str(tmp_path / "a.mp4")) as reader:
        assert [float(time) for time in reader.seconds] == pytest.approx([t / 1000 for t in VARIABLE])
        assert reader.read([0]).shape == (1, 48, 64, 3)
        assert (reader.stream.codec_context.name, reader.stream.pix_fmt) == ("h264", "yuv420p")


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures"):
        write_movie(tmp_path / "a.mp4", [], rate=25)
    with pytest.raises(InputError, match="cannot write"):
        write_movie(tmp_path / "gone/a.mp4", [(0, numbered_frame(0, (48, 64)))], rate=25)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, mode: str) -> object:
        import os

        os.close(descriptor)
        return open("/dev/full", "w+b", buffering=0)

    monkeypatch.setattr("video_iresnet.runtime.storage.os.fdopen", full)
    pictures = [(i / 25, numbered_frame(i, (480, 640))) for i in range(20)]
    with pytest.raises(InputError, match="No space left"):
        write_movie(tmp_path / "a.mp4", pictures, rate=25)
    assert not list(tmp_path.iterdir())
