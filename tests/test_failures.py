"""An error in one process of a run, or its death, ends the others within seconds, whatever they are doing."""

from __future__ import annotations

import platform
import re
import time
from pathlib import Path

import pytest
import torch
from conftest import DEMO, ROOT, start
from torch.distributed import TCPStore

# A run whose process of a rank meets its end in the second step, in the validation or in the test.
CODE = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tools")!r}]
import run_net
from video_iresnet import run
from video_iresnet.engine import evaluate
from video_iresnet.engine.step import Step

def fails(*_):
    if sys.argv[3] == "True":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("a defect")

def in_second_step(*arguments, step=Step.__call__):
    return fails() if arguments[2] == 1 else step(*arguments)

def while_testing(*arguments, test=run.test):
    evaluate.outputs_of_views = failing_views
    test(*arguments)

def failing_views(model, group, *_, **__):
    fails()

moment, rank = sys.argv[1:3]
if os.environ["RANK"] == rank:
    if moment == "training":
        Step.__call__ = in_second_step
    elif moment == "validation":
        evaluate.outputs_of_views = failing_views
    else:
        run.test = while_testing
sys.exit(run_net.main(sys.argv[4:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU")
def test_the_end_of_one_process_ends_the_others(small: list[str], tmp_path: Path) -> None:
    """They say why, where that one could tell, and by way of torchrun's store also if it was the main one."""
    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    short = ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0"]
    for moment, rank in (("training", 1), ("validation", 0), ("testing", 1)):
        for is_killed in (False, True):
            folder = tmp_path / f"{moment}{is_killed}"
            fault = [moment, str(rank), str(is_killed)]
            words = ["-c", CODE, *fault, "--cfg", DEMO, *small, *short, "OUTPUT_DIR", str(folder)]
            processes = [
                start(*words, environment=shared | {"RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(2)
            ]
            first, _ = processes[rank].communicate(120)
            ended = time.monotonic()
            other, _ = processes[1 - rank].communicate(120)
            seconds = time.monotonic() - ended
            print(f"{moment}, {processes[rank].returncode}: {seconds:.2f} s")
            assert processes[rank].returncode == (-9 if is_killed else 1), first
            assert ("RuntimeError: a defect" in first) == (not is_killed)
            host = re.escape(platform.node())
            why = rf"process {rank} on {host} did \(RuntimeError: a defect\)"
            why = "another one of this run did" if is_killed else why
            told = f"error: process {1 - rank} ends because {why}; the last checkpoint is intact; .*"
            assert len(re.findall(f"(?m)^{told}$", other)) == 1, other
            assert other.count("error: ") == 1
            assert "Traceback" not in other
            assert processes[1 - rank].returncode == 1
            assert seconds < 10
            assert (folder / "checkpoints").exists() == (moment != "training")
