"""The config for one's own videos, and the sizes of testing."""

from __future__ import annotations

import pytest
from conftest import ROOT, RunNet

from video_iresnet.config import load_config

OWN = str(ROOT / "configs/own/iR3D18.yaml")


def test_own_videos_are_tested_at_the_size_of_training() -> None:
    cfg = load_config(OWN)
    assert cfg.DATA.TEST_CROP_SIZE == cfg.DATA.TRAIN_CROP_SIZE == 112
    assert cfg.DATA.TRAIN_JITTER_SCALES[0] == cfg.DATA.TEST_SHORT_SIDE
    assert cfg.DATA.CLASS_NAMES == "classes.txt"


@pytest.mark.parametrize(("crop", "is_said"), [("48", True), ("64", False), ("80", False)])
@pytest.mark.parametrize("work", ["TRAIN.BATCH_SIZE 99", "TRAIN.ENABLE False"])
def test_a_smaller_size_in_testing_is_said_before_the_work(
    crop: str,
    is_said: bool,
    work: str,
    small: list[str],
    tmp_path: object,
    run_net: RunNet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both runs end before they train or test: the batch is larger than the list, or there are no weights."""
    sizes = ["DATA.TRAIN_JITTER_SCALES", "[64,80]", "DATA.TRAIN_CROP_SIZE", "64", "DATA.TEST_CROP_SIZE", crop]
    assert run_net(*small, *sizes, *work.split(), "OUTPUT_DIR", str(tmp_path)) == 1
    line = "DATA.TEST_CROP_SIZE 48 is smaller than DATA.TRAIN_CROP_SIZE 64"
    assert capsys.readouterr().out.count(line) == is_said
