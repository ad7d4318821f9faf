"""The embedded data set: real H.264, and nothing but motion tells the class."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
from conftest import ROOT, start

MOTIONS = 8


def test_files_are_h264_of_varied_size_rate_and_length(shapes: Path) -> None:
    seen = set()
    for path in sorted((shapes / "videos").iterdir()):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, container.format.name) == ("h264", "mov,mp4,m4a,3gp,3g2,mj2")
            seen.add((stream.width, stream.height, stream.average_rate, stream.frames))
    assert all(len({item[i] for item in seen}) > 2 for i in range(4))
    assert (shapes / "classes.txt").read_text().splitlines()[2:4] == ["moving up", "moving down"]
    assert (shapes / "val.csv").read_text().splitlines()[3] == "videos/val_0003.mp4 3"


def test_classes_share_every_scene_and_are_time_reversed_pairs(moving_shapes: ModuleType) -> None:
    scene = moving_shapes.draw_scene(np.random.default_rng(1))
    motions = list(moving_shapes.MOTIONS.values())
    first = [moving_shapes.render([(scene, motion)], 0) for motion in motions]
    assert all(np.array_equal(first[0], frame) for frame in first)
    for one, other in zip(motions[::2], motions[1::2], strict=True):
        assert np.array_equal(
            moving_shapes.render([(scene, one)], 7), moving_shapes.render([(scene, other)], -7)
        )
        assert not np.array_equal(moving_shapes.render([(scene, one)], 7), first[0])


def test_a_motion_comes_back_to_where_it_started(moving_shapes: ModuleType) -> None:
    """Position, angle and size are periodic, so their distribution does not change with time."""
    scene = moving_shapes.draw_scene(np.random.default_rng(2))._replace(cycles_per_frame=1 / 24)
    for motion in moving_shapes.MOTIONS.values():
        difference = moving_shapes.render([(scene, motion)], 24).astype(int) - moving_shapes.render(
            [(scene, motion)], 0
        )
        assert abs(difference).max() <= 1


def test_directions_are_what_the_names_say(moving_shapes: ModuleType) -> None:
    scene = moving_shapes.draw_scene(np.random.default_rng(3))
    scene = scene._replace(
        height=80,
        width=80,
        start=np.array([0.5, 0.5, 0.0, 0.2]),
        cycles_per_frame=1 / 40,
        background=np.zeros((80, 80, 3)),
        bulge=0.0,
    )

    def bright(name: str, frame: int) -> tuple[float, float, int]:
        """Centre and area of the shape."""
        mask = moving_shapes.render([(scene, moving_shapes.MOTIONS[name])], frame).max(2) > 40
        rows, columns = np.nonzero(mask)
        return float(rows.mean()), float(columns.mean()), int(mask.sum())

    assert bright("moving left", 4)[1] < bright("moving left", 0)[1] - 5
    assert bright("moving up", 4)[0] < bright("moving up", 0)[0] - 5
    assert bright("growing", 4)[2] > bright("growing", 0)[2] * 1.1
    dark = [
        moving_shapes.render([(scene, moving_shapes.MOTIONS["turning clockwise"])], f).astype(int)
        for f in (0, 5)
    ]
    sector = scene.colours[1].astype(int)
    rows = [np.nonzero((abs(frame - sector).max(2) < 12) & (frame.max(2) > 0))[0].mean() for frame in dark]
    assert rows[1] > rows[0] + 3  # from the right towards the bottom


def test_a_stopped_run_goes_on_and_a_finished_one_is_left_alone(
    tmp_path: Path, moving_shapes: ModuleType
) -> None:
    moving_shapes.write_data_set(tmp_path / "a", {"train": 9}, seed=4)
    kept = tmp_path / "b/videos/train_0003.mp4"
    kept.parent.mkdir(parents=True)
    kept.write_bytes((tmp_path / "a/videos/train_0003.mp4").read_bytes())
    before = kept.stat().st_mtime_ns
    command = [
        "data_prep/moving_shapes.py",
        "--out",
        str(tmp_path / "b"),
        "--train",
        "9",
        "--val",
        "0",
        "--test",
        "0",
        "--seed",
        "4",
    ]
    process = start(*command, cwd=ROOT)
    assert "wrote 9" in process.communicate()[0]
    assert kept.stat().st_mtime_ns == before
    for number in range(9):
        name = f"videos/train_{number:04d}.mp4"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "is complete; nothing was written" in start(*command, cwd=ROOT).communicate()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_group", [True, False])
def test_a_signal_leaves_whole_videos_alone_and_one_line(
    tmp_path: Path, number: signal.Signals, is_group: bool
) -> None:
    """To the process alone, or to its workers too."""
    command = ["data_prep/moving_shapes.py", "--out", str(tmp_path), "--train", "4000"]
    process = start(*command, new_session=True)
    videos = tmp_path / "videos"
    end = time.monotonic() + 60
    while len(list(videos.glob("*.mp4"))) < 3 or not list(videos.glob(".*.partial")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    (os.killpg if is_group else os.kill)(process.pid, number)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    assert re.fullmatch(r"stopped[^\n]*\n", text), text
    assert {path.suffix for path in videos.iterdir()} == {".mp4"}
    assert not list(tmp_path.glob("*.csv"))


def test_mistakes_are_one_line(
    tmp_path: Path, moving_shapes: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--train", "--seed"):
        assert moving_shapes.main(["--out", str(tmp_path), option, "-1"]) == 1
        assert capsys.readouterr().err == f"error: {option} is -1; expected 0 or more\n"
    (tmp_path / "file").touch()
    assert moving_shapes.main(["--out", str(tmp_path / "file"), "--train", "1"]) == 1
    error = capsys.readouterr().err
    assert (error.startswith("error: "), error.count("\n")) == (True, 1)
