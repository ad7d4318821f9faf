"""The drill of tests/drill.py: a short one, and that it finds what is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from drill import FAULTS, TWO, Fault, Start, differences, disorder, leftovers

from video_iresnet.engine.checkpoint import Position, save_checkpoint

TRACEBACK = "Traceback (most recent call last):\n  File x\n"
TORCHRUNS = f"{TRACEBACK}torch.distributed.elastic.multiprocessing.api.SignalException: 15\n"


def finished_run(folder: Path, **changes: Any) -> Path:
    """The files of a finished run that the drill looks at."""
    position = Position(4, history=[{"epoch": 1, "top1": 50.0}]).state_dict()
    state = {"model_state": {"w": torch.arange(4.0)}, "optimizer_state": {}, "cfg": "", "class_names": []}
    state["position"] = position
    for name in ("checkpoint_epoch_00004.pyth", "checkpoint_best.pyth"):
        save_checkpoint(folder / "checkpoints" / name, state | changes)
    for name in ("config.yaml", "results.json", "predictions.csv"):
        (folder / name).write_text("{}\n")
    (folder / "json_stats.log").write_text(f"json_stats: {json.dumps({'loss': 1.0})}\n" * 2)
    return folder


def test_runs_are_compared_bit_for_bit(tmp_path: Path) -> None:
    expected = finished_run(tmp_path / "a")
    assert not differences(finished_run(tmp_path / "b"), expected)
    one_bit = torch.arange(4.0)
    one_bit[3] = torch.nextafter(one_bit[3], torch.tensor(9.0))
    assert len(differences(finished_run(tmp_path / "c", model_state={"w": one_bit}), expected)) == 2
    assert len(differences(finished_run(tmp_path / "d", position=Position(4).state_dict()), expected)) == 2
    (tmp_path / "b/predictions.csv").write_text("{}")
    assert len(differences(tmp_path / "b", expected)) == 1


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("checkpoints/.checkpoint_epoch_00001.pyth.abcdefgh.partial", b""),
        ("checkpoints/checkpoint_epoch_00004.pyth", b"PK\3\4"),
        ("json_stats.log", b'json_stats: {"loss": 1.0}\njson_stats: {"lo'),
        ("results.json", b'{"top1_acc": '),
        ("config.yaml", b"TRAIN: {"),
    ],
)
def test_half_written_files_are_found(name: str, contents: bytes, tmp_path: Path) -> None:
    finished_run(tmp_path)
    assert not leftovers(tmp_path)
    (tmp_path / name).write_bytes(contents)
    assert len(leftovers(tmp_path)) == 1


def test_disorder_in_the_output_is_found() -> None:
    kill, term = (Fault(TWO, "all", number) for number in (signal.SIGKILL, signal.SIGTERM))
    assert not disorder(f"saved x\n{TORCHRUNS}", term)
    importing = TRACEBACK.replace("File x", 'File "<frozen runpy>", line 1') + "KeyboardInterrupt\n"
    assert not disorder(importing, term)
    assert disorder(f"{TRACEBACK}KeyError: 1\n{importing}", term) == "1 traceback(s)"
    assert disorder(f"{TRACEBACK}KeyError: 1\n{TORCHRUNS}", kill) == "1 traceback(s)"
    assert disorder("[rank0]: " + TRACEBACK, term) == "1 traceback(s)"
    assert disorder("x\nerror: a worker was killed\n", term) == "error: a worker was killed"
    assert not disorder("x\nerror: a worker was killed\n", kill)


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_processes_that_outlive_their_run_are_found(tmp_path: Path) -> None:
    """Whoever their parent is, and in a session of their own."""
    child = "import subprocess, sys; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    start = Start([sys.executable, "-c", child], tmp_path / "output.txt")
    try:
        assert start.end() == 0
        assert len(start.processes()) == 1
    finally:
        start.kill()
    for _ in range(100):
        if not start.processes():
            return
        time.sleep(0.05)
    raise AssertionError("it is still there")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU")
def test_a_short_drill(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tests/drill.py", "--kills", "1", "--seed", "6", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split("|")[3].strip() for line in done.stdout.splitlines() if line.startswith("| all ")] == [
        "1"
    ]
    assert len(set(FAULTS)) == len(FAULTS)
