"""Transcoded videos show the same frames at the same times; whatever is killed or full, nothing half-written
counts and no original is touched.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
import resource
import signal
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import foreign
import numpy as np
import pytest
from conftest import VARIABLE, copy_video, load_script, shown_numbers, start, trimmed, write_video
from test_decode import broken_files

from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.data.records import read_records
from video_iresnet.prep import quality, transcode

SCRIPT = "data_prep/transcode.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(SCRIPT)


def run(script: ModuleType, folder: Path, names: list[str], *arguments: str) -> int:
    """Transcode the videos of a folder, each with its position as its label, into `out` beside it, in this
    process.
    """
    (folder / "train.csv").write_text("".join(f"{name} {label}\n" for label, name in enumerate(names)))
    return int(
        script.main(
            [
                "--list",
                str(folder / "train.csv"),
                "--out",
                str(folder.parent / "out"),
                "--workers",
                "0",
                *arguments,
            ]
        )
    )


def facts(path: Path) -> dict[str, Any]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return {
            "codec": stream.codec_context.name,
            "size": (stream.height, stream.width),
            "pixels": stream.codec_context.pix_fmt,
            "streams": len(container.streams),
            "times": [round(float(frame.pts * frame.time_base), 4) for frame in frames],
            "keyframes": [i for i, frame in enumerate(frames) if frame.key_frame],
            "duration": float(stream.duration * stream.time_base) if stream.duration else None,
            "ratio": stream.sample_aspect_ratio,
        }


def all_numbers(path: Path) -> list[int]:
    with PyAVReader(str(path)) as reader:
        return shown_numbers(reader.read(range(len(reader))))


KINDS: dict[str, dict[str, Any]] = {
    "long.mp4": {"num_frames": 60, "gop": 250, "size": (96, 130)},
    "variable.mkv": {"num_frames": 20, "times": VARIABLE},
    "late.mkv": {"num_frames": 30, "times": [5000 + 40 * i for i in range(30)]},
    "mpeg4.avi": {"num_frames": 40, "codec": "mpeg4"},
    "tall.mp4": {"num_frames": 25, "size": (128, 72)},
    "small.mp4": {"num_frames": 1},
    "vp9.webm": {"num_frames": 20, "codec": "libvpx-vp9"},
    "ten bits, hevc.mp4": {"num_frames": 20, "codec": "libx265"},
}


@pytest.mark.parametrize("name", KINDS)
def test_same_frames_at_the_same_times(script: ModuleType, tmp_path: Path, name: str) -> None:
    options = dict(KINDS[name])
    source = write_video(tmp_path / "in" / name, options.pop("num_frames"), **options)
    original = source.read_bytes()
    assert run(script, tmp_path / "in", [name], "--short-side", "64") == 0
    before, after = facts(source), facts((tmp_path / "out" / name).with_suffix(".mp4"))
    assert all_numbers((tmp_path / "out" / name).with_suffix(".mp4")) == list(range(len(before["times"])))
    assert after["times"] == pytest.approx([t - before["times"][0] for t in before["times"]], abs=0.0006)
    assert (after["codec"], after["pixels"], after["streams"]) == ("h264", "yuv420p", 1)
    height, width = before["size"]
    scale = min(1, 64 / min(height, width))
    assert after["size"] == (round(height * scale / 2) * 2, round(width * scale / 2) * 2)
    assert np.diff([*after["keyframes"], len(after["times"])]).max() <= 16
    assert after["duration"] == pytest.approx(
        after["times"][-1] + 0.04, abs=0.06
    )  # MP4 counts in the order of decoding
    assert source.read_bytes() == original


def test_odd_sizes_and_ten_bits(script: ModuleType, tmp_path: Path) -> None:
    """Formats with all colours and more bits, as yuv444p10le in FFV1, of an odd size: never larger, always
    even, same picture.
    """
    (tmp_path / "in").mkdir()
    picture = np.zeros((45, 67, 3), np.uint8) + np.array([200, 40, 90], np.uint8)
    with av.open(str(tmp_path / "in/odd.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(30000, 1001))
        stream.height, stream.width, stream.pix_fmt = 45, 67, "yuv444p10le"
        for _ in range(5):
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p10le")
                )
            )
        container.mux(stream.encode())
    assert run(script, tmp_path / "in", ["odd.mkv"], "--crf", "10") == 0
    with PyAVReader(str(tmp_path / "out/odd.mp4")) as reader:
        frames = reader.read(range(len(reader)))
    assert frames.shape == (5, 44, 66, 3)
    assert abs(frames.float().mean((0, 1, 2)).numpy() - [200, 40, 90]).max() < 3


@pytest.mark.parametrize(("pixels", "colours"), [("yuv420p", (1, 1)), ("yuvj420p", (1, 2)), ("bgr0", (0, 0))])
def test_colours_keep_their_meaning(
    script: ModuleType, tmp_path: Path, pixels: str, colours: tuple[int, int]
) -> None:
    """BT.709, full range and RGB."""
    (tmp_path / "in").mkdir()
    with av.open(str(tmp_path / "in/a.mkv"), "w") as container:
        stream = container.add_stream("ffv1" if pixels == "bgr0" else "libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, pixels
        if pixels != "bgr0":
            stream.codec_context.colorspace, stream.codec_context.color_range = colours
        picture = av.VideoFrame.from_ndarray(
            np.zeros((64, 64, 3), np.uint8) + np.array([230, 30, 60], np.uint8), format="rgb24"
        )
        named = {} if pixels == "bgr0" else {"dst_colorspace": "ITU709", "dst_color_range": colours[1]}
        picture = picture.reformat(format=pixels, **named)
        for number in range(3):
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert run(script, tmp_path / "in", ["a.mkv"], "--crf", "5") == 0
    shown = []
    for path in (tmp_path / "in/a.mkv", tmp_path / "out/a.mp4"):
        with PyAVReader(str(path)) as reader:
            shown.append(reader.read([1]).float().mean((0, 1, 2)))
    assert abs(shown[0] - shown[1]).max() < 3, shown


@pytest.mark.parametrize(
    ("degrees", "flips"),
    [(0, "h"), (0, "v"), (90, ""), (180, ""), (270, ""), (90, "h"), (90, "v"), (270, "h")],
)
def test_rotated_videos_become_upright(script: ModuleType, tmp_path: Path, degrees: int, flips: str) -> None:
    """Where FFmpeg says that the stored corners are shown, there they are."""
    (tmp_path / "in").mkdir()
    stored = np.full((48, 96), 40, np.uint8)
    stored[:24, :48], stored[:24, 48:], stored[24:, :48] = 100, 160, 220
    with av.open(str(tmp_path / "in/a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(degrees, hflip="h" in flips, vflip="v" in flips)
        for _ in range(3):
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(
                        np.concatenate([stored, np.full((24, 96), 128, np.uint8)]), format="yuv420p"
                    )
                )
            )
        container.mux(stream.encode())
    assert run(script, tmp_path / "in", ["a.mp4"], "--short-side", "32") == 0
    shown = np.rot90(stored, degrees // 90)  # PyAV's degrees are counter-clockwise, and it mirrors afterwards
    shown = shown[:, ::-1] if "h" in flips else shown
    shown = shown[::-1] if "v" in flips else shown
    after = facts(tmp_path / "out/a.mp4")
    assert after["size"] == ((32, 64) if degrees % 180 == 0 else (64, 32))
    assert after["ratio"] == (Fraction(4, 3) if degrees % 180 == 0 else Fraction(3, 4))
    with av.open(str(tmp_path / "out/a.mp4")) as container:
        frame = next(container.decode(video=0))
    assert frame.rotation == 0
    luma = frame.to_ndarray()[: frame.height].astype(int)
    for row in (0.25, 0.75):
        for column in (0.25, 0.75):
            expected = int(shown[int(row * shown.shape[0]), int(column * shown.shape[1])])
            assert abs(luma[int(row * luma.shape[0]), int(column * luma.shape[1])] - expected) < 6


def test_names_labels_failures_and_the_summary(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    reasons = broken_files(folder)
    good = ["making tea/a, b.mp4", "<b>&amp;.mkv", "größe 7.avi", "x 3,.mp4"]
    for number, name in enumerate(good):
        write_video(folder / name, 10 + number)
    names = [*good[:2], *reasons, *good[2:], good[0]]
    assert run(script, folder, names, "--compare", "2") == 0
    text = capsys.readouterr().out
    assert f"4 done, 0 skipped (done before), {len(reasons)} failed" in text
    assert "luma of 2 videos: PSNR" in text
    out = tmp_path / "out"
    records = read_records(str(out / "train.csv"), root=str(out), num_classes=99)
    assert [(record.name, record.label) for record in records] == [
        (str(Path(name).with_suffix(".mp4")), label) for label, name in enumerate(names) if name in good
    ]
    assert [len(all_numbers(Path(record.path))) for record in records] == [10, 11, 12, 13, 10]
    with open(out / "train_failed.csv", newline="", encoding="utf-8") as file:
        failed = list(csv.DictReader(file))
    assert [row["path"] for row in failed] == list(reasons)
    for row in failed:
        assert re.search(reasons[row["path"]], row["reason"]), row
    assert run(script, folder, names) == 0
    assert f"0 done, 4 skipped (done before), {len(reasons)} failed" in capsys.readouterr().out


def test_what_was_made_otherwise_or_elsewhere_stays(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write_video(folder / "a.mkv", 10)
    assert run(script, folder, ["a.mkv"]) == 0
    made = (out / "a.mp4").read_bytes()
    assert run(script, folder, ["a.mkv"], "--short-side", "32") == 1
    assert "was made with short_side 256, not 32" in capsys.readouterr().err
    write_video(tmp_path / "in2/a.avi", 12, codec="mpeg4")
    assert run(script, tmp_path / "in2", ["a.avi"]) == 1
    assert "was made from another video" in capsys.readouterr().err
    assert (out / "a.mp4").read_bytes() == made
    write_video(folder / "a.mkv", 14)  # the source has changed
    assert run(script, folder, ["a.mkv"]) == 0
    assert all_numbers(out / "a.mp4") == list(range(14))
    for name in ("b.avi", "b.mkv"):
        write_video(folder / name, 5, codec="mpeg4")
    assert run(script, folder, ["b.avi", "b.mkv"]) == 1
    assert "would both become" in capsys.readouterr().err
    original = write_video(out / "b.mp4", 7).read_bytes()
    assert run(script, folder, ["b.avi"]) == 1
    assert "was not written by this script" in capsys.readouterr().err
    assert (out / "b.mp4").read_bytes() == original
    (out / "train_failed.csv").unlink()
    assert run(script, folder, ["a.mkv"]) == 1
    assert "train.csv is there and was not written" in capsys.readouterr().err
    assert script.main(["--list", str(folder / "train.csv"), "--out", str(folder)]) == 1
    assert "folder of the list itself" in capsys.readouterr().err


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    with av.open(str(tmp_path / "in/noise.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"qscale": "2"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for _ in range(20):
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(rng.integers(0, 256, (96, 128, 3), np.uint8), format="rgb24")
                )
            )
        container.mux(stream.encode())
    write_video(tmp_path / "in/a.mp4", 5)
    (tmp_path / "in/train.csv").write_text("a.mp4 0\nnoise.avi 1\n")
    command = [SCRIPT, "--list", str(tmp_path / "in/train.csv"), "--out", str(tmp_path / "out")]
    process = start(*command, "--workers", "1")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20000, 20000))
    text = process.communicate()[0]
    assert process.returncode == 1
    assert text.splitlines()[-1].startswith("error: cannot write")
    assert "Traceback" not in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "a.mp4"]
    assert "1 done, 1 skipped" in start(*command, "--workers", "0").communicate()[0]


@pytest.mark.slow
def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    """kill -9, Ctrl-C and SIGTERM of the whole process group, each in the middle of a video."""
    folder, out = tmp_path / "in", tmp_path / "out"
    names = [f"v/{number}.mp4" for number in range(8)]
    source = write_video(tmp_path / "source.mp4", 60, size=(240, 320))
    for name in names:
        copy_video(source, folder / name)
    (folder / "train.csv").write_text("".join(f"{name} {label}\n" for label, name in enumerate(names)))
    arguments = [SCRIPT, "--list", str(folder / "train.csv"), "--out", str(out)]
    arguments += ["--workers", "1", "--preset", "veryslow"]
    kept: dict[Path, int] = {}
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        process = start(*arguments, new_session=True)
        end = time.monotonic() + 60
        while len(list(out.glob("v/*.mp4"))) < len(kept) + 1 or not partials(out):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.005)
        os.killpg(process.pid, number)
        text = process.communicate()[0]
        is_killed = number == signal.SIGKILL
        assert process.returncode == (-number if is_killed else 128 + number)
        assert text == "" if is_killed else re.fullmatch(r"stopped[^\n]*\n", text)
        assert not (out / "train.csv").exists()
        assert bool(partials(out)) == is_killed
        assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
        kept = {path: path.stat().st_mtime_ns for path in out.glob("v/*.mp4")}
        assert len(kept) < 8
    (out / "v/.other.mp4.abcdefgh.partial").write_text("not of this list")
    text = start(*arguments).communicate()[0]
    assert f"{8 - len(kept)} done, {len(kept)} skipped" in text
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        *names, ".lock", "v/.other.mp4.abcdefgh.partial", "packets.sqlite", "train.csv",
        "train_failed.csv",
    }  # fmt: skip
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert all(all_numbers(out / name) == list(range(60)) for name in names)
    assert len(read_records(str(out / "train.csv"), root=str(out), num_classes=8)) == 8


def partials(out: Path) -> list[Path]:
    return list(out.glob("v/.*.partial"))


def test_the_same_bits_at_every_run(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", 80, size=(240, 320))
    found = set()
    for number in range(3):
        settings = transcode.Settings(128, 16, 23, "medium")
        job = transcode.Job(str(source), str(tmp_path / f"{number}.mp4"), settings)
        assert transcode.transcode(job).failure == ""
        found.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(found) == 1


def test_psnr_and_ssim_are_what_their_definitions_say() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (40, 50)).astype(np.float32)
    assert quality.ssim(x, x) == pytest.approx(1, abs=1e-6)
    flat = np.full((40, 50), 100, np.float32)
    c1 = (0.01 * 255) ** 2
    assert quality.ssim(flat, flat + 20) == pytest.approx(
        (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1), abs=1e-4
    )
    assert quality.ssim(x, 255 - x) < -0.5
    assert (
        quality.ssim(x, x + rng.normal(0, 20, x.shape).astype(np.float32))
        < quality.ssim(x, x + rng.normal(0, 5, x.shape).astype(np.float32))
        < 1
    )


def test_without_scikit_image_nothing_is_begun(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "in/a.mp4", 10)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    assert run(script, tmp_path / "in", ["a.mp4"], "--compare", "1") == 1
    assert "pip install 'video_iresnet[prep]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(script, tmp_path / "in", ["a.mp4"]) == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [("--short-side", "255"), ("--short-side", "2"), ("--gop", "0"), ("--crf", "52"), ("--compare", "-1")],
)
def test_wrong_options_are_one_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert script.main(["--list", str(tmp_path / "a.csv"), "--out", str(tmp_path), option, value]) == 1
    assert f"{option} is {value}; expected" in capsys.readouterr().err


def test_most_frames_are_needed_by_no_other(tmp_path: Path, script: ModuleType) -> None:
    """Whatever the source's own pattern, a reader may leave them undecoded; keyframes come every 16 frames,
    or where pictures change much, as here at 20 and 60, and not where the source has them.
    """
    write_video(tmp_path / "in/a.mp4", 65, gop=5)
    assert run(script, tmp_path / "in", ["a.mp4"]) == 0
    keyframes = facts(tmp_path / "out/a.mp4")["keyframes"]
    assert max(b - a for a, b in itertools.pairwise([*keyframes, 65])) <= 16
    assert not {5, 10, 15, 25} & set(keyframes)
    with av.open(str(tmp_path / "out/a.mp4")) as container:
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = "NONREF"
        needed = [round(frame.time * 25) for frame in container.decode(stream)]
    assert len(needed) <= 65 / 3
    assert set(keyframes) <= set(needed)


def test_a_trimmed_video_is_no_truncated_one(tmp_path: Path, script: ModuleType) -> None:
    """What an edit list cuts off, as in clips cut without encoding, is not there and is not missed."""
    trimmed(write_video(tmp_path / "in/a.mp4", 60), 15)
    assert run(script, tmp_path / "in", ["a.mp4"]) == 0
    assert all_numbers(tmp_path / "out/a.mp4") == list(range(15, 60))


FOREIGN = [
    "packed_xvid.avi",
    "mpeg4_b_frames.avi",
    "h264_b_frames.wmv",
    "hevc_from_cra.ts",
    "mpeg2_from_open_gop.mkv",
    "h264_before_keyframe.ts",
    "joined.ts",
    "lost_frames.mkv",
    "still_first.mp4",
    "cover_first.mp4",
    "two_videos_second_default.mp4",
    "latin1_title.3gp",
    "mirrored_across.mp4",
    "mirrored_down.mp4",
]


def test_foreign_files_show_the_frames_that_the_reader_numbers(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its order, at its times, upright."""
    for name in FOREIGN:
        (tmp_path / "in").mkdir(exist_ok=True)
        foreign.KINDS[name].build(tmp_path / "in" / name)
    names = [
        (tmp_path / "in" / name).rename(tmp_path / "in" / f"{n} {name}").name
        for n, name in enumerate(FOREIGN)
    ]
    assert run(script, tmp_path / "in", names, "--crf", "5") == 0
    assert f"{len(FOREIGN)} done, 0 skipped (done before), 0 failed" in capsys.readouterr().out
    for name, kind in zip(names, FOREIGN, strict=True):
        after = (tmp_path / "out" / name).with_suffix(".mp4")
        with PyAVReader(str(tmp_path / "in" / name)) as one, PyAVReader(str(after)) as other:
            shown = [shown_numbers(reader.read(range(len(reader)))) for reader in (one, other)]
            assert shown[0] == shown[1] == list(foreign.KINDS[kind].numbers or []), kind
            seconds = [float(time - one.seconds[0]) for time in one.seconds]
            assert [float(time) for time in other.seconds] == pytest.approx(seconds, abs=0.0006), kind
            middle = len(one) // 2
            difference = (one.read([middle]).float() - other.read([middle]).float()).abs().mean()
            assert difference < 4, kind


def test_hostile_files_are_failures_with_a_reason(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever stands there, and whatever a name looks like: it is a file or it is not read."""
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in/good.mp4", 5)
    urls = [
        "rtmp://localhost:1/x.ts",
        "concat:good.mp4|good.mp4",
        "tcp://localhost:1",
        "/dev/zero",
        "/dev/stdin",
    ]
    kinds = dict(foreign.HOSTILE)
    for name in ("late_stream.ts", "unknown_codec.mkv"):  # may be read; would have the name of another
        del kinds[name]
    for name, build in kinds.items():
        build(tmp_path / "in" / name)
    assert run(script, tmp_path / "in", ["good.mp4", *kinds, *urls]) == 0
    assert f"1 done, 0 skipped (done before), {len(kinds) + len(urls)} failed" in capsys.readouterr().out
    with open(tmp_path / "out/train_failed.csv", newline="", encoding="utf-8") as file:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert list(reasons) == [*kinds, *urls]
    assert all(reason and "\n" not in reason for reason in reasons.values())
    assert reasons["fifo.mp4"] == "it is a named pipe, not a file"
    assert reasons["dev_zero.mp4"] == reasons["/dev/zero"] == "it is a device, not a file"
    assert {reasons[url] for url in urls[:3]} == {"No such file or directory"}


def test_a_second_run_is_refused_and_the_first_ends_well(tmp_path: Path) -> None:
    write_video(tmp_path / "in/a.mp4", 250, size=(240, 320))
    (tmp_path / "in/train.csv").write_text("a.mp4 0\n")
    arguments = [SCRIPT, "--list", str(tmp_path / "in/train.csv"), "--out", str(tmp_path / "out")]
    arguments += ["--workers", "1", "--preset", "slower"]
    first = start(*arguments)
    while not list((tmp_path / "out").glob(".*.partial")):
        assert first.poll() is None
        time.sleep(0.005)
    second = start(*arguments)
    assert re.fullmatch(
        rf"error: \S*out is in use by process {first.pid} [^\n]*\n", second.communicate(timeout=60)[0]
    )
    assert second.returncode == 1
    assert "1 done, 0 skipped (done before), 0 failed" in first.communicate()[0]
