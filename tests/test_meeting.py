"""Processes that meet, or do not, and the end of all when one of them ends."""

from __future__ import annotations

import platform
import re
import socket
import time

import pytest
from conftest import start
from starts import Forked
from torch.distributed import TCPStore

# Processes that exchange messages. `fault`: what the last one does; `patience` in seconds.
CODE = """
import os, sys, time
from datetime import timedelta
import torch
from video_iresnet.runtime.distributed import Processes, group_of_run
from video_iresnet.runtime.ending import exit_code
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.meeting import Meeting

patience, fault = timedelta(seconds={patience}), "{fault}"
is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
wait, all_reduce = Meeting.wait, torch.distributed.all_reduce

def hang(self, place):
    if place == "sum" and is_last:
        time.sleep(60)
    wait(self, place)

def work():
    if fault == "hangs":
        Meeting.wait = hang
    if fault == "cannot add" and is_last:
        torch.distributed.all_reduce = lambda *_, **__: time.sleep(60)
    with group_of_run():
        processes = Processes(False, patience)
        for step in range(30):
            assert processes.sum([1]) == [processes.size]
            if step == 3 and is_last and fault == "raises":
                raise RuntimeError("a defect")
            if step == 3 and is_last and fault == "cannot read":
                raise InputError("a.mp4 is empty")
            if step == 3 and is_last and fault == "dies":
                os._exit(9)
    print("done", flush=True)

sys.exit(exit_code(work))
"""
HOST = re.escape(platform.node())


@pytest.fixture(scope="module")
def agent() -> TCPStore:
    """A store like that of torchrun's agent, which outlives the processes."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def begin(
    store: TCPStore | int, ranks: list[int], size: int, fault: str = "", patience: float = 60
) -> list[Forked]:
    """Start processes on the code. `store`: that of an agent, or the port of the main process's own."""
    port = store if isinstance(store, int) else store.port
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size),
        "TORCHELASTIC_USE_AGENT_STORE": str(not isinstance(store, int)), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    code = CODE.format(fault=fault, patience=patience)
    return [start("-c", code, environment=shared | {"RANK": str(rank), "LOCAL_RANK": "0"}) for rank in ranks]


def end(process: Forked) -> tuple[int | None, str]:
    """Wait for the end; return the exit status, negative for a signal, and the output."""
    output, _ = process.communicate(60)
    return process.returncode, output


def test_who_does_not_come_is_named(free_port: int) -> None:
    """The last of three never starts; the store is the main process's."""
    first, second = begin(free_port, [0, 1], 3, patience=3)
    status, error = end(first)
    expected = rf"error: of 3 processes, these did not come within 3 s: 2 \(those on {HOST} did\); .*\n"
    assert re.fullmatch(expected, error), error
    assert status == 1
    status, error = end(second)
    assert error.splitlines()[-1].startswith("error: "), error  # PyTorch may write a warning before
    assert status == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "hangs",
            rf"of 2 processes, these did not come within 3 s: 1 on {HOST} \(those on {HOST} did\); .*",
        ),
        (
            "cannot add",
            rf"process 0 on {HOST} met all others but cannot add up a number with them by gloo \(no answer "
            r"within 3 s\); check the network between the hosts, and GLOO_SOCKET_IFNAME",
        ),
    ],
)
def test_who_hangs_before_the_first_sum_is_told(fault: str, message: str, agent: TCPStore) -> None:
    begun = time.monotonic()
    first, second = begin(agent, [0, 1], 2, fault, patience=3)
    status, error = end(first)
    seconds = time.monotonic() - begun
    second.kill()
    end(second)
    assert re.fullmatch(f"error: {message}\n", error), error
    assert status == 1
    assert seconds < 30


def test_a_missing_main_process_is_named(agent: TCPStore, free_port: int) -> None:
    """The agent's store answers, or nothing does at this port or this name."""
    found = [*begin(agent, [1], 2, patience=1), *begin(free_port, [1], 2, patience=1)]
    errors = [end(process) for process in found]
    expected = rf"error: process 0 did not come within 1 s \(process 1 on {HOST} did\); .*\n"
    assert re.fullmatch(expected, errors[0][1]), errors
    expected = (
        rf"error: process 1 on {HOST} cannot reach the store of the main process at MASTER_ADDR 127.0.0.1, "
        rf"MASTER_PORT {free_port} \(Connection refused\); .*\n"
    )
    assert re.fullmatch(expected, errors[1][1]), errors
    assert [status for status, *_ in errors] == [1, 1]


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (first,) = begin(port, [0], 2, patience=1)
        status, error = end(first)
    expected = (
        rf"error: process 0 on {HOST} cannot serve the store .* MASTER_PORT {port} \(.*\); name a free port\n"
    )
    assert re.search(expected, error), error
    assert status == 1


# What the last process does: (its exit status, what the others say).
ENDS = {
    "raises": (1, rf"process 1 on {HOST} did \(RuntimeError: a defect\)"),
    "cannot read": (1, rf"process 1 on {HOST} did \(a.mp4 is empty\)"),
    "dies": (9, "another one of this run did"),
}


def test_one_that_ends_ends_all_and_the_next_ones_meet_anew(agent: TCPStore) -> None:
    """By way of one store, which is full of words of the dead; the last group has another size."""
    for fault, (status, why) in ENDS.items():
        first, second = begin(agent, [0, 1], 2, fault)
        ends = [end(second)]
        ended = time.monotonic()
        ends.append(end(first))
        assert time.monotonic() - ended < 5
        assert [code for code, _ in ends] == [status, 1]
        assert re.fullmatch(rf"error: process 0 ends because {why}; .*\n", ends[1][1]), ends
        assert ("RuntimeError: a defect" in ends[0][1]) == (fault == "raises")
    assert [end(process) for process in begin(agent, [0, 1, 2], 3)] == 3 * [(0, "done\n")]
