"""Output folders that other runs use or used: who may write there, and with which config a run goes on."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import DEMO, ROOT, RunNet, start
from test_storage import HOLD

from video_iresnet import run
from video_iresnet.runtime.storage import exclusive


def test_a_second_run_in_a_folder_is_refused(
    small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it would train or test; what the first one left unfinished stays."""
    (tmp_path / ".results.json.aaaaaaaa.partial").touch()
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        for enable in ("TRAIN.ENABLE", "TEST.ENABLE"):
            assert run_net(*small, "OUTPUT_DIR", str(tmp_path), enable, "False") == 1
            expected = rf"error: {tmp_path} is in use by process {holder.pid} on [^\n]*; wait [^\n]*\n"
            assert re.fullmatch(expected, capsys.readouterr().err)
        assert {path.name for path in tmp_path.iterdir()} == {".lock", ".results.json.aaaaaaaa.partial"}
        holder.kill()


@pytest.mark.slow
def test_a_second_run_of_two_processes_is_refused(small: list[str], tmp_path: Path) -> None:
    """None of its processes waits for the others."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    with exclusive(tmp_path):
        process = start(
            "tools/run_net.py", "--cfg", DEMO, *small, "OUTPUT_DIR", str(tmp_path), launcher=launcher
        )
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"error: {tmp_path} is in use by process" in output


def test_a_folder_is_held_from_training_to_testing(
    small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And freed after each config, so that the next one may use it."""
    events: list[str] = []

    @contextmanager
    def noted(folder: Path) -> Iterator[None]:
        events.append("hold")
        with exclusive(folder):
            yield
        events.append("free")

    monkeypatch.setattr(run, "exclusive", noted)
    monkeypatch.setattr(run, "train", lambda *_: events.append("train"))
    monkeypatch.setattr(run, "test", lambda *_: events.append("test"))
    assert run_net(DEMO, *small, "OUTPUT_DIR", str(tmp_path)) == 0
    assert events == ["hold", "train", "test", "free"] * 2


def test_what_killed_runs_left_unfinished_is_removed(
    small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "test"):
        monkeypatch.setattr(run, name, lambda *_: None)
    (tmp_path / "checkpoints").mkdir()
    leftovers = [
        "checkpoints/.checkpoint_epoch_00001_step_000003.pyth.x1b2_3d4.partial",
        "checkpoints/.checkpoint_best.pyth.aaaaaaaa.partial",
        ".results.json.aaaaaaaa.partial",
        ".predictions.csv.aaaaaaaa.partial",
        ".config.yaml.aaaaaaaa.partial",
    ]
    others = [".video.mp4.aaaaaaaa.partial", "checkpoints/mine.partial"]
    for name in leftovers + others:
        (tmp_path / name).touch()
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path)) == 0
    assert not any((tmp_path / name).exists() for name in leftovers)
    assert all((tmp_path / name).exists() for name in others)


def test_an_output_folder_has_a_name(
    small: list[str],
    tmp_path: Path,
    run_net: RunNet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_net(*small, "OUTPUT_DIR", "") == 1
    assert re.fullmatch(r"error: OUTPUT_DIR is empty; name the folder [^\n]*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
