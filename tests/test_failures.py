"""An error in one process of a run, or its death, ends the others within seconds, whatever they are doing."""

from __future__ import annotations

import platform
import re
import time
from pathlib import Path

import forked
import pytest
import torch
from conftest import DEMO
from torch.distributed import TCPStore

# A run whose process of a rank meets its end in the second step, in the validation or in the test.
CODE = """
import os, signal, sys
from conftest import load_script
from video_iresnet import run
from video_iresnet.engine import evaluate
from video_iresnet.engine.step import Step

def fails(*_):
    if {is_killed}:
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("a defect")

def in_second_step(*arguments, step=Step.__call__):
    return fails() if arguments[2] == 1 else step(*arguments)

def while_testing(*arguments, test=run.test):
    evaluate.outputs_of_views = failing_views
    test(*arguments)

def failing_views(model, group, *_, **__):
    fails()

if os.environ["RANK"] == "{rank}":
    if "{moment}" == "training":
        Step.__call__ = in_second_step
    elif "{moment}" == "validation":
        evaluate.outputs_of_views = failing_views
    else:
        run.test = while_testing
sys.exit(load_script("tools/run_net.py").main({words}))
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
    short = ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "TEST.TEMPORAL_CHECKS", "False"]
    with forked.forking(tmp_path, "conftest", "video_iresnet.run") as server:
        for moment, rank in (("training", 1), ("validation", 0), ("testing", 1)):
            for is_killed in (False, True):
                folder = tmp_path / f"{moment}{is_killed}"
                words = ["--cfg", DEMO, *small, *short, "OUTPUT_DIR", str(folder)]
                code = CODE.format(is_killed=is_killed, rank=rank, moment=moment, words=words)
                processes = [
                    server.start(code, shared | {"RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(2)
                ]
                first = processes[rank].end(120)
                ended = time.monotonic()
                status, _, error = processes[1 - rank].end(120)
                seconds = time.monotonic() - ended
                print(f"{moment}, {first[0]}: {seconds:.2f} s")
                assert first[0] == (-9 if is_killed else 1), first
                assert ("RuntimeError: a defect" in first[2]) == (not is_killed)
                host = re.escape(platform.node())
                why = rf"process {rank} on {host} did \(RuntimeError: a defect\)"
                why = "another one of this run did" if is_killed else why
                told = rf"error: process {1 - rank} ends because {why}; the last checkpoint is intact; .*\n"
                assert re.search(f"(?m)^{told}\\Z", error), error  # PyTorch's warnings may be before it
                assert "Traceback" not in error
                assert status == 1
                assert seconds < 10
                assert (folder / "checkpoints").exists() == (moment != "training")
