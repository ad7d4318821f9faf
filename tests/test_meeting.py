"""Processes that meet, or do not, and the end of all when one of them ends."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from torch.distributed import TCPStore

# Processes that exchange messages. arguments: seconds of patience, what the last process does.
SCRIPT = f"""
import os, sys, time
from datetime import timedelta
sys.path.insert(0, {str(ROOT)!r})
from video_iresnet.runtime import meeting
from video_iresnet.runtime.distributed import Processes, group_of_run
from video_iresnet.runtime.ending import exit_code

meeting.PATIENCE, fault = timedelta(seconds=float(sys.argv[1])), sys.argv[2]
is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
wait = meeting.Meeting.wait

def hang(self, place):
    if place == "sum" and is_last:
        time.sleep(600)
    wait(self, place)

def work():
    if fault == "hangs":
        meeting.Meeting.wait = hang
    with group_of_run():
        processes = Processes(use_gpu=False)
        for step in range(30):
            assert processes.sum([1]) == [processes.size]
            if step == 3 and is_last and fault == "raises":
                raise RuntimeError("a defect")
            if step == 3 and is_last and fault == "dies":
                os._exit(9)
    print("done", flush=True)

sys.exit(exit_code(work))
"""
Started = list["subprocess.Popen[str]"]
HOST = re.escape(platform.node())


@pytest.fixture
def server() -> TCPStore:
    """A store like that of torchrun's agent, which outlives the processes."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def started() -> Iterator[Started]:
    processes: Started = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def begin(
    started: Started, folder: Path, store: TCPStore | int, ranks: list[int], size: int, *words: str
) -> Started:
    """Start processes on the script. `store`: that of an agent, or the port of the main process's own."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    port = store if isinstance(store, int) else store.port
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size),
        "TORCHELASTIC_USE_AGENT_STORE": str(not isinstance(store, int)), "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }  # fmt: skip
    new = [
        subprocess.Popen(
            [sys.executable, str(script), *words],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    started += new
    return new


@pytest.fixture
def free_port() -> int:
    return int(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port)


def test_who_does_not_come_is_named(started: Started, free_port: int, tmp_path: Path) -> None:
    """The last of three never starts; the store is the main process's."""
    first, second = begin(started, tmp_path, free_port, [0, 1], 3, "8", "")
    _, error = first.communicate(timeout=60)
    expected = rf"error: of 3 processes, these did not come within 8 s: 2 \(those on {HOST} did\); .*\n"
    assert re.fullmatch(expected, error), error
    assert first.returncode == 1
    _, error = second.communicate(timeout=60)
    assert re.fullmatch(r"error: .*\n", error), error
    assert second.returncode == 1


def test_who_hangs_before_the_first_sum_is_named_with_its_host(
    started: Started, server: TCPStore, tmp_path: Path
) -> None:
    first, _ = begin(started, tmp_path, server, [0, 1], 2, "8", "hangs")
    _, error = first.communicate(timeout=60)
    expected = rf"error: .* did not come within 8 s: 1 on {HOST} \(those on {HOST} did\); .*\n"
    assert re.fullmatch(expected, error), error
    assert first.returncode == 1


def test_a_missing_main_process_is_named(
    started: Started, server: TCPStore, free_port: int, tmp_path: Path
) -> None:
    found = begin(started, tmp_path, server, [1], 2, "1", "") + begin(
        started, tmp_path, free_port, [1], 2, "1", ""
    )
    errors = [process.communicate(timeout=60)[1] for process in found]
    assert re.fullmatch(rf"error: process 0 did not come within 1 s \(process 1 on {HOST} did\)\n", errors[0])
    expected = rf"error: process 1 on {HOST} cannot reach the store .* MASTER_PORT {free_port} \(.*\)"
    *_, last = errors[1].splitlines()  # PyTorch's own lines about the socket are before it
    assert re.fullmatch(expected, last), errors[1]


@pytest.mark.slow
def test_one_that_ends_ends_all_and_the_next_ones_meet_anew(
    started: Started, server: TCPStore, tmp_path: Path
) -> None:
    """By way of one store, which is full of words of the dead; the last group has another size."""
    for fault in ("raises", "dies"):
        first, second = begin(started, tmp_path, server, [0, 1], 2, "60", fault)
        _, other = second.communicate(timeout=60)
        ended = time.monotonic()
        _, error = first.communicate(timeout=60)
        assert time.monotonic() - ended < 5
        assert re.fullmatch(r"error: process 0 ends because another one of this run did; .*\n", error), error
        assert ("RuntimeError: a defect" in other) == (fault == "raises")
        assert (first.returncode, second.returncode) == (1, 1 if fault == "raises" else 9)
    outputs = [p.communicate(timeout=60) for p in begin(started, tmp_path, server, [0, 1, 2], 3, "60", "")]
    assert outputs == 3 * [("done\n", "")]
