"""Every video is decoded once: what is wrong is found, named and left out; nothing is decoded twice; nothing
of others is overwritten.
"""

from __future__ import annotations

import csv
import html.parser
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import foreign
import numpy as np
import pytest
from conftest import VARIABLE, copy_video, load_script, start, trimmed, write_video
from PIL import Image
from test_decode import broken_files

from video_iresnet.data.records import read_records
from video_iresnet.prep import examine

SCRIPT = "data_prep/verify.py"
PROBLEMS = {
    "empty.mp4": "unreadable",
    "truncated.mp4": "unreadable",
    "text.mp4": "unreadable",
    "noise.mp4": "unreadable",
}
PROBLEMS |= {"audio.mp4": "no video", "front.mp4": "truncated", "absent.mp4": "missing"}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(SCRIPT)


def run(script: ModuleType, folder: Path, names: list[str], *arguments: str) -> dict[str, Any]:
    """Verify videos of a folder, each with its position as its label, in this process; what the JSON file
    says.
    """
    (folder / "train.csv").write_text(
        "".join(f"{name} {label}\n" for label, name in enumerate(names)), encoding="utf-8"
    )
    assert script.main(["--list", str(folder / "train.csv"), "--workers", "0", *arguments]) == 0
    return dict(json.loads((folder / "train_verify.json").read_text(encoding="utf-8")))


class Page(html.parser.HTMLParser):
    """The text of a page, its tags, and its attributes' values."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.tags, self.values = "", set(), []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.values += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


def test_bad_videos_are_named_and_left_out(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = broken_files(tmp_path)
    good = ["making tea/a, b.mp4", "<b>&amp;'.mkv", "größe 7.avi", "x 3,.mp4"]
    for number, name in enumerate(good):
        write_video(tmp_path / name, 10 + number, codec="mpeg4" if name.endswith("avi") else "libx264")
    names = [*good, *reasons]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    result = run(script, tmp_path, names)
    assert "4 of 11 videos are good" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    records = read_records(str(tmp_path / "train_clean.csv"), root="", num_classes=99)
    assert [(record.name, record.label) for record in records] == list(zip(good, range(4), strict=True))
    with open(tmp_path / "train_bad.csv", newline="", encoding="utf-8") as file:
        bad = list(csv.DictReader(file))
    assert {row["path"]: row["problem"] for row in bad} == PROBLEMS
    assert [row["label"] for row in bad] == [str(4 + i) for i in range(7)]
    for row in bad:
        assert row["path"] == "empty.mp4" or re.search(
            reasons[row["path"]].removeprefix("truncated: "), row["reason"]
        ), row
    assert result["bad"] == [{**row, "label": int(row["label"])} for row in bad]
    assert (result["videos"], result["good"], result["warnings"], result["copies"]) == (11, 4, [], [])
    assert [row["good"] for row in result["classes"]] == [1] * 4 + [0] * 7


def test_the_report_shows_everything_and_needs_nothing(script: ModuleType, tmp_path: Path) -> None:
    names = ['<script>alert("1")</script>.mp4', "a&lt;b, ü.mp4", "gone <i>.mp4"]
    for name in names[:2]:
        write_video(tmp_path / name, 10, times=[200 * i for i in range(10)])
    shutil.copy(tmp_path / names[1], tmp_path / "copy.mp4")
    result = run(script, tmp_path, [*names, "copy.mp4"], "--report", str(tmp_path / "report.html"))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    for name in [*names, "copy.mp4"]:
        assert name in page.words
    assert not page.tags & {"script", "i", "link", "img", "iframe"}
    assert not [value for key, value in page.values if key in ("src", "href")]
    assert "1 of 4 videos are bad (25.00 %)" in " ".join(page.words.split())
    assert "odd frame rate: 3" in page.words
    assert "5.00 frames a second, outside [10, 61]" in page.words
    assert result["distributions"]["frame rate, frames a second"] == [["5.00", 3]]
    assert result["distributions"]["short side, pixels"] == [["0 to below 128", 3]]
    assert result["distributions"]["duration, seconds"] == [["2 to below 4", 3]]


def test_oddities_are_named_and_kept(script: ModuleType, tmp_path: Path) -> None:
    write_video(tmp_path / "even.mp4", 30)
    write_video(tmp_path / "late.mkv", 30, times=[5000 + round(1001 / 30 * i) for i in range(30)])
    write_video(tmp_path / "uneven.mp4", 20, times=VARIABLE)
    write_video(tmp_path / "slow.mp4", 10, times=[500 * i for i in range(10)])
    whole = write_video(tmp_path / "damaged.mkv", 60, size=(192, 256)).read_bytes()
    middle = len(whole) // 2
    (tmp_path / "damaged.mkv").write_bytes(
        whole[:middle] + np.random.default_rng(0).bytes(3) + whole[middle + 3 :]
    )
    write_video(tmp_path / "destroyed.mkv", 30, codec="libx265")
    with av.open(str(tmp_path / "destroyed.mkv")) as container:
        sizes = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray((tmp_path / "destroyed.mkv").read_bytes())
    position, size = sizes[12]  # a keyframe
    start = data.index(bytes(data[position : position + 4]), position) + 8
    data[start : start + size - 8] = bytes(size - 8)
    (tmp_path / "destroyed.mkv").write_bytes(data)
    names = ["even.mp4", "late.mkv", "uneven.mp4", "slow.mp4", "damaged.mkv", "destroyed.mkv"]
    result = run(script, tmp_path, names)
    assert [(row["path"], row["problem"]) for row in result["warnings"]] == [
        ("uneven.mp4", "uneven frame rate"),
        ("slow.mp4", "odd frame rate"),
        ("damaged.mkv", "damaged"),
    ]
    assert [(row["path"], row["problem"]) for row in result["bad"]] == [("destroyed.mkv", "unreadable")]
    assert result["good"] == 5


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9")]
)
def test_truncated_files_of_other_kinds(script: ModuleType, tmp_path: Path, name: str, codec: str) -> None:
    whole = write_video(tmp_path / name, 60, codec=codec, size=(192, 256)).read_bytes()
    (tmp_path / f"cut_{name}").write_bytes(whole[: len(whole) * 6 // 10])
    result = run(script, tmp_path, [name, f"cut_{name}"])
    assert [(row["path"], row["problem"]) for row in result["bad"]] == [(f"cut_{name}", "truncated")]


def test_copies_and_what_they_mean(script: ModuleType, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 10)
    write_video(tmp_path / "b.mp4", 11)
    write_video(tmp_path / "c.mp4", 12)
    (tmp_path / "val").mkdir()
    for source, target in (("a.mp4", "a2.mp4"), ("b.mp4", "val/x.mp4"), ("c.mp4", "d.mp4")):
        shutil.copy(tmp_path / source, tmp_path / target)
    (tmp_path / "val/val.csv").write_text("x.mp4 1\ngone.mp4 1\n")
    result = run(
        script, tmp_path, ["a.mp4", "b.mp4", "a2.mp4", "c.mp4"], "--against", str(tmp_path / "val/val.csv")
    )
    found = [(copy["remarks"], [entry["path"] for entry in copy["entries"]]) for copy in result["copies"]]
    other = str(tmp_path / "val/val.csv")
    assert sorted(found) == [
        ([f"also in {other}"], ["b.mp4", "x.mp4"]),
        (["different labels"], ["a.mp4", "a2.mp4"]),
    ]
    assert (result["against"], result["good"]) == ({other: 1}, 4)


def test_nothing_is_decoded_twice(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number}.mp4" for number in range(5)]
    for number, name in enumerate(names[:4]):
        write_video(tmp_path / name, 10 + number)
    first = run(script, tmp_path, names)
    decoded: list[str] = []
    decode = examine.decode
    monkeypatch.setattr(examine, "decode", lambda path: decoded.append(Path(path).name) or decode(path))
    assert run(script, tmp_path, names) == first
    assert decoded == []
    write_video(tmp_path / "1.mp4", 20)
    write_video(tmp_path / "4.mp4", 20)
    journal = tmp_path / "train_verify.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])  # torn by a kill
    assert run(script, tmp_path, names)["good"] == 5
    assert sorted(decoded) == ["1.mp4", "3.mp4", "4.mp4"]
    decoded.clear()
    assert run(script, tmp_path, names)["good"] == 5
    assert decoded == []


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """kill -9 of the whole process group; the result is that of a run that was left alone."""
    names = [f"{number}.mp4" for number in range(16)]
    source = write_video(tmp_path / "source.mp4", 200, size=(120, 160))
    for name in names:
        copy_video(source, tmp_path / name)
    (tmp_path / "train.csv").write_text("".join(f"{name} {label}\n" for label, name in enumerate(names)))
    journal = tmp_path / "train_verify.jsonl"
    arguments = [SCRIPT, "--list", str(tmp_path / "train.csv"), "--workers", "1"]
    process = start(*arguments, new_session=True)
    end = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < end
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    known = len([line for line in journal.read_bytes().split(b"\n") if line.endswith(b"}")])
    assert 2 <= known < 16
    assert not (tmp_path / "train_clean.csv").exists()
    text = start(*arguments).communicate()[0]
    assert f"{known} of 16 videos were verified before" in text
    assert "16 of 16 videos are good" in text
    resumed = json.loads((tmp_path / "train_verify.json").read_text())
    start(*arguments, "--out", str(tmp_path / "out")).communicate()
    assert json.loads((tmp_path / "out/train_verify.json").read_text()) == resumed
    records = read_records(str(tmp_path / "out/train_clean.csv"), root=str(tmp_path / "out"), num_classes=16)
    assert [Path(record.path) for record in records] == [tmp_path / name for name in names]


@pytest.mark.parametrize(
    "name", ["train_clean.csv", "train_bad.csv", "train_verify.json", "train_verify.html"]
)
def test_files_of_others_stay(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_video(tmp_path / "a.mp4", 10)
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    (tmp_path / name).write_text("mine")
    assert script.main(["--list", str(tmp_path / "train.csv"), "--workers", "0"]) == 1
    assert "was not written by this script" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"
    assert script.main(["--list", str(tmp_path / "train.csv"), "--report", "report.txt"]) == 1
    assert "expected a name that ends in .html" in capsys.readouterr().err


def test_a_trimmed_video_is_good(script: ModuleType, tmp_path: Path) -> None:
    trimmed(write_video(tmp_path / "a.mp4", 60), 15)
    assert run(script, tmp_path, ["a.mp4"])["bad"] == []


def test_foreign_files_are_good_and_their_gaps_are_noticed(script: ModuleType, tmp_path: Path) -> None:
    expected = {
        "packed_xvid.avi": None,
        "h264_b_frames.wmv": None,
        "cover_first.mp4": None,
        "latin1_title.3gp": None,
        "joined.ts": None,
        "lost_frames.mkv": ("frames lost", "58 of 120 frames are there, at a constant rate with gaps"),
        "dropped_frames.avi": ("frames lost", "96 of 98 frames are there, at a constant rate with gaps"),
        "hevc_from_cra.mkv": ("begins in the middle", "the first 3 frames need others that are not there"),
        "mpeg2_from_open_gop.mkv": ("begins in the middle", "the first 2 frames need others"),
    }
    for name in expected:
        foreign.KINDS[name].build(tmp_path / name)
    result = run(script, tmp_path, list(expected))
    assert result["bad"] == []
    found = {row["path"]: (row["problem"], row["reason"]) for row in result["warnings"]}
    for name, notice in expected.items():
        if notice is None:
            assert name not in found, found[name]
        else:
            assert found[name][0] == notice[0], (name, found)
            assert found[name][1].startswith(notice[1]), found[name]


def test_hostile_files_are_findings_of_one_line(script: ModuleType, tmp_path: Path) -> None:
    """A device is not read, and a name that looks like an address is a name."""
    urls = ["rtmp://localhost:1/x.ts", "tcp://localhost:1", "/dev/zero"]
    kinds = {name: build for name, build in foreign.HOSTILE.items() if name != "late_stream.ts"}
    for name, build in kinds.items():
        build(tmp_path / name)
    (tmp_path / "val.csv").write_text("fifo.mp4 0\n/dev/zero 0\n")
    result = run(script, tmp_path, [*kinds, *urls], "--against", str(tmp_path / "val.csv"))
    bad = {row["path"]: row for row in result["bad"]}
    assert list(bad) == [*kinds, *urls]
    assert all(row["reason"] and "\n" not in row["reason"] for row in bad.values())
    assert {row["problem"] for name, row in bad.items() if name in kinds or name == "/dev/zero"} <= {
        "unreadable",
        "truncated",
        "no video",
    }
    assert bad["fifo.mp4"]["reason"] == "it is a named pipe, not a file"
    assert bad["/dev/zero"]["reason"] == "it is a device, not a file"
    assert {bad[url]["problem"] for url in urls[:2]} == {"missing"}
    assert result["against"] == {str(tmp_path / "val.csv"): 2}


def test_pictures_are_verified(script: ModuleType, tmp_path: Path) -> None:
    """Without warnings of rates or an index of packets, and with pixels that are patched up."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8))
    picture.save(tmp_path / "good.JPEG", quality=90)
    picture.convert("P").save(tmp_path / "good.png")
    picture.save(tmp_path / "other.png", "WEBP")
    data = (tmp_path / "good.JPEG").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_bytes(b"a picture")
    (tmp_path / "patched.jpg").write_bytes(data[:-2] + b"\0" * 20 + data[-2:])
    (tmp_path / "copy.jpg").write_bytes(data)
    names = ["good.JPEG", "good.png", "other.png", "cut.jpg", "text.jpg", "patched.jpg", "copy.jpg", "no.jpg"]
    result = run(script, tmp_path, names)
    bad = {row["path"]: row["problem"] for row in result["bad"]}
    assert bad == {"cut.jpg": "truncated", "text.jpg": "unreadable", "no.jpg": "missing"}
    (odd,) = result["warnings"]
    assert (odd["path"], odd["problem"]) == ("patched.jpg", "damaged")
    assert "patched up: Corrupt JPEG data" in odd["reason"]
    assert [entry["path"] for entry in result["copies"][0]["entries"]] == ["good.JPEG", "copy.jpg"]
    assert result["distributions"]["short side, pixels"] == [["0 to below 128", 5]]
    assert result["distributions"]["codec"] == [["jpeg", 3], ["png", 1], ["webp", 1]]
    assert result["distributions"]["frame rate, frames a second"] == []
    page = Page((tmp_path / "train_verify.html").read_text())
    assert "The good ones take" in page.words
    assert "duration, seconds" not in page.words
    assert not (tmp_path / "packets.sqlite").exists()
    kept = read_records(str(tmp_path / "train_clean.csv"), root="", num_classes=9)
    assert [record.name for record in kept] == [*names[:3], "patched.jpg", "copy.jpg"]


def test_a_second_run_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "a.mp4", 5)
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    hold = "import sys, time, pathlib; from video_iresnet.runtime.storage import exclusive\n"
    hold += "with exclusive(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    holder = start("-c", hold, str(tmp_path))
    assert holder.stdout
    holder.stdout.readline()
    assert script.main(["--list", str(tmp_path / "train.csv"), "--workers", "0"]) == 1
    holder.kill()
    holder.communicate()
    assert re.fullmatch(rf"error: \S+ is in use by process {holder.pid} [^\n]*\n", capsys.readouterr().err)
    assert not list(tmp_path.glob("train_*"))
