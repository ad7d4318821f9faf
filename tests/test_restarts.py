"""Checkpoints in the middle of an epoch, and runs that go on from them by themselves."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import DEMO, TORCHRUN, RunNet, start
from test_run_net import assert_same_weights, stats_of, wait_for_step
from test_signals import descendants

from video_iresnet import folder
from video_iresnet.engine.checkpoint import list_checkpoints

# Three epochs of 12 short steps.
LONG = [
    "TRAIN.BATCH_SIZE", "2", "SOLVER.MAX_EPOCH", "3", "MODEL.DROPOUT_RATE", "0.5", "TEST.ENABLE", "False",
    "TRAIN.CHECKPOINT_PERIOD", "10",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(small: list[str], tmp_path_factory: pytest.TempPathFactory, run_net: RunNet) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_net(*small, *LONG, "TRAIN.CHECKPOINT_MINUTES", "0", "OUTPUT_DIR", str(folder)) == 0
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["checkpoint_epoch_00003.pyth"]
    return folder


@pytest.mark.parametrize(
    ("minutes", "saved"),
    [
        ("5", [(0, 5), (0, 10), (1, 3), (1, 8), (2, 1), (2, 6), (2, 11)]),
        # Due with the last step of an epoch, which has no middle any more: after the next one.
        ("4", [(0, 4), (0, 8), (1, 1), (1, 5), (1, 9), (2, 1), (2, 5), (2, 9)]),
    ],
)
def test_checkpoints_inside_epochs_change_no_result(
    minutes: str, saved: list[tuple[int, int]], undisturbed: Path, small: list[str], tmp_path: Path,
    run_net: RunNet, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With a clock on which each step takes a minute: it is asked once at each, and after each checkpoint."""
    clock, names, save = itertools.count(0, 60), [], folder.save_checkpoint

    def noted(path: Path, state: dict[str, object]) -> None:
        names.append(path.name)
        save(path, state)

    monkeypatch.setattr(folder, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(folder, "save_checkpoint", noted)
    more = ["TRAIN.CHECKPOINT_MINUTES", minutes, "OUTPUT_DIR", str(tmp_path)]
    assert run_net(*small, *LONG, *more, "LOG_PERIOD", "5") == 0
    inside = [f"checkpoint_epoch_{epoch:05d}_step_{step:06d}.pyth" for epoch, step in saved]
    assert [name for name in names if "step" in name] == inside
    kept = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert kept == [*inside[-2:], "checkpoint_epoch_00003.pyth"]
    assert_same_weights(undisturbed, tmp_path)
    ours, theirs = (stats_of(run, "train_epoch") for run in (tmp_path, undisturbed))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]


def test_a_killed_run_goes_on_from_the_middle_of_the_epoch(
    undisturbed: Path, small: list[str], tmp_path: Path, run_net: RunNet, capfd: pytest.CaptureFixture[str]
) -> None:
    run = [*small, *LONG, "TRAIN.CHECKPOINT_MINUTES", "1e-6", "OUTPUT_DIR", str(tmp_path)]
    process = start("tools/run_net.py", "--cfg", DEMO, *run)
    wait_for_step(process, tmp_path, 2, 4)
    process.kill()
    process.communicate()
    assert run_net(*run) == 0
    # The line of a step is written before its checkpoint.
    assert re.search(r"resuming from \S+, after 1 epochs and ([3-9]|1[01]) steps", capfd.readouterr().out)
    assert_same_weights(undisturbed, tmp_path)
    ours, theirs = (
        {(line["epoch"], line["iter"]): line["loss"] for line in stats_of(run, "train_iter_")}
        for run in (tmp_path, undisturbed)
    )
    assert ours == theirs


TWO = [*LONG, "TRAIN.BATCH_SIZE", "4", "TEST.ENABLE", "True", "TRAIN.CHECKPOINT_MINUTES", "1e-6"]
on_the_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU"
)


def launched(folder: Path, small: list[str], *launcher: str) -> subprocess.Popen[str]:
    """Start torchrun on a run."""
    run = ["tools/run_net.py", "--cfg", DEMO, *small, *TWO, "OUTPUT_DIR", str(folder)]
    return start(*run, launcher=launcher, new_session=True)


@pytest.mark.slow
@on_the_cpu
def test_torchrun_restarts_a_run_of_which_a_process_was_killed(small: list[str], tmp_path: Path) -> None:
    """It ends by itself with the weights and predictions of the undisturbed run, bit for bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    launcher = [*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "2"]
    undisturbed = launched(whole, small, *launcher)
    output, _ = undisturbed.communicate(timeout=240)
    assert undisturbed.returncode == 0, output
    process = launched(killed, small, *launcher)
    wait_for_step(process, killed, 2, 4)
    os.kill(descendants(process.pid)[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert re.search(r"resuming from \S+, after 1 epochs and \d+ steps", output), output
    assert_same_weights(whole, killed)
    assert (whole / "predictions.csv").read_bytes() == (killed / "predictions.csv").read_bytes()
