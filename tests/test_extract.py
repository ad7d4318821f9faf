"""Features of videos: values, names, files, and the same bits however they come about."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, RunNet, load_script, run_together, start
from numpy.typing import NDArray
from safetensors import safe_open

from video_iresnet import build
from video_iresnet.data.functional import cut
from video_iresnet.engine.views import VideoOutputs, ViewWriter
from video_iresnet.inference import read_trained


@pytest.fixture(scope="module")
def run(small: list[str], tmp_path_factory: pytest.TempPathFactory, run_net: RunNet) -> Path:
    """A network that takes 2 clips by 3 crops of a video, one video at a time."""
    folder = tmp_path_factory.mktemp("extract") / "run"
    assert run_net(*small, "OUTPUT_DIR", str(folder), "TEST.ENABLE", "False") == 0
    return folder


def arguments(run: Path, *more: object) -> list[str]:
    return ["--checkpoint", str(run), "--workers", "0", "--device", "cpu", *map(str, more)]


def extract(run: Path, *more: object) -> int:
    return int(load_script("tools/extract.py").main(arguments(run, *more)))


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file.items())


@pytest.fixture(scope="module")
def whole(run: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "whole"
    command = ["--list", shapes / "test.csv", "--out", folder, "--stage", "stage3"]
    assert extract(run, *command) == 0
    assert extract(run, *command, "--per", "clip", "--format", "safetensors") == 0
    return folder


def test_features_are_means_of_the_stage_under_the_names_of_the_list(
    run: Path, shapes: Path, whole: Path
) -> None:
    trained = read_trained(run, "cpu")
    cfg = trained.cfg
    data = build.build_test_data(cfg, build.build_records(cfg, "DATA.TEST_LIST"))
    normalize = build.build_normalize(cfg, torch.device("cpu"))
    per_video = read(whole / "features_per_video.npz")
    assert list(per_video) == [line.split()[0] for line in (shapes / "test.csv").read_text().splitlines()]
    with safe_open(whole / "features_per_clip.safetensors", "np") as file:
        assert file.metadata() == {"stage": "stage3", "per": "clip"}
        assert set(file.keys()) == set(per_video)
        for number, (name, feature) in enumerate(per_video.items()):
            views, clips = data[number], []
            for clip in views.clips:
                crops = [cut(views.frames, place, 32)[clip] for place in views.crops]
                inputs = normalize(torch.stack(crops).permute(0, 4, 1, 2, 3))
                with torch.no_grad():
                    clips.append(trained.network.features(inputs)[2].mean((2, 3, 4)).mean(0))
            expected = torch.stack(clips).numpy()
            assert expected.shape == (2, 16)
            np.testing.assert_allclose(file.get_tensor(name), expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(feature, expected.mean(0), rtol=1e-4, atol=1e-5)
            assert feature.dtype == file.get_tensor(name).dtype == np.float32
    about = json.loads((whole / "features.json").read_text())
    assert (about["stage"], about["num_videos"], about["failed"]) == ("stage3", 11, {})
    assert about["views"].startswith("2x3 @32")


def test_another_file_needs_no_other_pass(
    run: Path, shapes: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("video_iresnet.inference.features.PooledStage.forward", no_network)
    command = ["--list", shapes / "test.csv", "--out", whole, "--stage", "stage3"]
    before = (whole / "features_per_video.npz").read_bytes()
    assert extract(run, *command) == 0
    assert (whole / "features_per_video.npz").read_bytes() == before
    assert extract(run, *command, "--per", "clip") == 0
    with safe_open(whole / "features_per_clip.safetensors", "np") as file:
        for name, array in read(whole / "features_per_clip.npz").items():
            assert np.array_equal(file.get_tensor(name), array)


def test_logits_are_those_of_the_network(run: Path, shapes: Path, tmp_path: Path) -> None:
    video = shapes / "videos/test_0001.mp4"
    command = ["--stage", "logits", "--clips", 1, "--crops", 1]
    assert extract(run, *command, "--out", tmp_path / "f", video, shapes / "videos/test_0002.mp4") == 0
    trained = read_trained(run, "cpu")
    trained.cfg.TEST.NUM_ENSEMBLE_VIEWS = trained.cfg.TEST.NUM_SPATIAL_CROPS = 1
    data = build.build_test_data(trained.cfg, build.build_records(trained.cfg, "DATA.TEST_LIST"))
    views = data[1]
    clip = cut(views.frames, views.crops[0], 32)[views.clips[0]].permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        expected = trained.network(build.build_normalize(trained.cfg, torch.device("cpu"))(clip))[0]
    found = read(tmp_path / "f/features_per_video.npz")
    assert list(found) == [str(video), str(shapes / "videos/test_0002.mp4")]
    np.testing.assert_allclose(found[str(video)], expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU")
def test_two_processes_write_the_same_bytes(run: Path, shapes: Path, whole: Path, tmp_path: Path) -> None:
    command = arguments(run, "--list", shapes / "test.csv", "--out", tmp_path / "f", "--stage", "stage3")
    output = run_together(2, "tools/extract.py", *command)
    assert output.count("features_per_video.npz: stage3 of 11 videos, per video") == 1
    assert len(list((tmp_path / "f/views").glob("*/process_*.sqlite"))) == 2
    one, two = (folder / "features_per_video.npz" for folder in (whole, tmp_path / "f"))
    assert one.read_bytes() == two.read_bytes()


def test_after_a_kill_the_same_command_goes_on(run: Path, shapes: Path, whole: Path, tmp_path: Path) -> None:
    command = arguments(run, "--list", shapes / "test.csv", "--out", tmp_path / "f", "--stage", "stage3")
    code = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from conftest import load_script
from video_iresnet.engine import views
views.PERIOD, add = 0.0, views.ViewWriter.add
def add_or_die(writer, group):
    if group[0].record == 4:
        os.kill(os.getpid(), 9)
    add(writer, group)
views.ViewWriter.add = add_or_die
load_script("tools/extract.py").main({command!r})
"""
    killed = start("-c", code)
    output = killed.communicate(timeout=180)[0]
    assert killed.returncode == -signal.SIGKILL, output
    assert not list((tmp_path / "f").glob("features*"))
    seen: list[int] = []
    add = ViewWriter.add

    def noting(writer: ViewWriter, group: Sequence[VideoOutputs]) -> None:
        seen.append(group[0].record)
        add(writer, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ViewWriter, "add", noting)
        assert load_script("tools/extract.py").main(command) == 0
    assert seen == list(range(4, 11))
    one, two = (folder / "features_per_video.npz" for folder in (whole, tmp_path / "f"))
    assert one.read_bytes() == two.read_bytes()


def test_unreadable_videos_are_told_and_the_rest_goes_on(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/fine.mp4").write_bytes((shapes / "videos/test_0000.mp4").read_bytes())
    (folder / "broken.mp4").write_bytes(b"no video")
    assert extract(run, "--out", tmp_path / "f", folder) == 1
    output = capsys.readouterr()
    assert output.out == f"{tmp_path}/f/features_per_video.npz: stage4 of 1 videos, per video\n"
    first, second = output.err.splitlines()
    assert first == "1 of 2 videos could not be read:"
    assert second.startswith(f"  {folder}/broken.mp4: ")
    assert list(read(tmp_path / "f/features_per_video.npz")) == [f"{folder}/deep/fine.mp4"]
    assert list(json.loads((tmp_path / "f/features.json").read_text())["failed"]) == [f"{folder}/broken.mp4"]


def test_a_video_that_is_listed_twice_is_written_once(run: Path, shapes: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("videos/test_0003.mp4 3\nvideos/test_0002.mp4 2\nvideos/test_0003.mp4 4\n")
    assert extract(run, "--list", listed, "--root", shapes, "--out", tmp_path / "f") == 0
    found = read(tmp_path / "f/features_per_video.npz")
    assert list(found) == ["videos/test_0003.mp4", "videos/test_0002.mp4"]


def test_mistakes_are_one_line(
    run: Path, shapes: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = ["--list", shapes / "test.csv"]
    for command, text in [
        (
            [*listed, "--out", whole, "--stage", "stage2"],
            "holds features of other weights, videos",
        ),
        ([*listed, "--out", whole, "--stage", "stage3", "--crops", 1], "name another folder"),
        (
            [*listed, "--out", tmp_path / "f", "--stage", "layer3"],
            "unknown stage 'layer3'; expected one",
        ),
        ([*listed, "--out", tmp_path / "f", "a.mp4"], "name either --list or videos and folders"),
        (["--out", tmp_path / "f"], "name either --list or videos and folders"),
        (["--out", tmp_path / "f", tmp_path], "holds no videos; name files, or a folder of videos"),
        (["--out", tmp_path / "f", "b\x01.mp4"], "'b\\x01.mp4' is no printable name"),
    ]:
        assert extract(run, *command) == 1
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert not list((tmp_path / "f").glob("[!.]*"))
