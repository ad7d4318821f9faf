"""Folders of frames: their rates are written beside them, and clips are taken by them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import DEMO, shown_numbers
from test_decode_frames import write_frames

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.data.decode import open_video
from video_iresnet.data.frame_rates import FILE_NAME, read_frame_rates, with_frame_rates, write_frame_rates
from video_iresnet.data.records import Record
from video_iresnet.data.sampling import Timeline
from video_iresnet.runtime.errors import InputError

FOLDERS = """DATA.LIST_FORMAT folders DATA.PATH_PREFIX frames DATA.TEST_LIST list.txt DATA.NUM_FRAMES 4
DATA.FRAME_NAMES {folder}_%06d.jpg DATA.SAMPLING_RATE 3 TEST.NUM_ENSEMBLE_VIEWS 1"""


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A folder of 60 frames, and the overrides of a config that reads it."""
    write_frames(tmp_path / "frames/7", list(range(60)), size=(16, 64))
    (tmp_path / "list.txt").write_text("7 60 0\n")
    return ["DATA.PATH_TO_DATA_DIR", str(tmp_path), "DATA.CLASS_NAMES", "", *FOLDERS.split()]


@pytest.mark.parametrize(("target", "apart"), [("0", 3), ("12", 3), ("24", 1.5), ("6", 6)])
@pytest.mark.parametrize("content", ['{"7": 12, "8": 30}', "12"])
def test_clips_of_12_frames_a_second(
    tmp_path: Path, options: list[str], content: str, target: str, apart: float
) -> None:
    (tmp_path / "frames" / FILE_NAME).write_text(content)
    cfg = load_config(DEMO, [*options, "DATA.TARGET_FPS", target])
    (record,) = build.build_records(cfg, "DATA.TEST_LIST")
    sampler = build.build_test_data(cfg, [record]).sampler
    with open_video(record) as reader:
        assert reader.fps == 12
        (clip,) = sampler.uniform_clips(Timeline(len(reader), reader.fps), 4, 1)
        shown = shown_numbers(reader.read(clip))
    assert shown[-1] - shown[0] == round(3 * apart)


@pytest.mark.parametrize("sampler", ["dense", "slowfast"])
@pytest.mark.parametrize("content", [None, '{"8": 12}'])
def test_a_rate_that_is_needed_but_not_known(
    tmp_path: Path, options: list[str], content: str | None, sampler: str
) -> None:
    if content:
        (tmp_path / "frames" / FILE_NAME).write_text(content)
    cfg = load_config(DEMO, [*options, "DATA.TARGET_FPS", "12", "DATA.SAMPLER", sampler])
    with pytest.raises(
        InputError,
        match=r"needs the frame rate of .*frames/7, which is not known; write it into .*/frame_rates.json, "
        r'as {"7": 12} or as 12 for all folders, or set DATA.TARGET_FPS 0$',
    ):
        build.build_records(cfg, "DATA.TEST_LIST")
    (record,) = build.build_records(load_config(DEMO, options), "DATA.TEST_LIST")
    assert record.fps == 0


def test_video_files_need_no_rates() -> None:
    assert with_frame_rates([Record("a", "/x/a.mp4", 0)], needed=True) == [Record("a", "/x/a.mp4", 0)]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "true", "0", "NaN", "1" + "0" * 400, '{"7": 0}', '{"7": "12"}', "[" * 9999]
)
def test_mistakes_in_frame_rates(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(InputError, match=r"frame_rates.json does not hold frame rates; expected [^\n]*$"):
        read_frame_rates(str(tmp_path / FILE_NAME))


def test_rates_are_added_and_never_changed(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    write_frame_rates(path, {"7": 12.0})
    write_frame_rates(path, {"8": 29.97, "7": 12.0004})
    assert json.loads(path.read_text()) == {"7": 12.0, "8": 29.97}
    with pytest.raises(
        InputError, match=r"says that 7 has 12.* frames a second, but its video has 25; correct"
    ):
        write_frame_rates(path, {"7": 25.0})
    path.write_text("12")
    write_frame_rates(path, {"7": 12.0})
    assert path.read_text() == "12"
