"""Processes that meet, or do not, and the end of all when one of them ends."""

from __future__ import annotations

import platform
import re
import socket
import time
from collections.abc import Iterator

import forked
import pytest
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
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[forked.Server]:
    folder = tmp_path_factory.mktemp("forks")
    with forked.forking(folder, "video_iresnet.runtime.distributed") as server:
        yield server


@pytest.fixture(scope="module")
def agent() -> TCPStore:
    """A store like that of torchrun's agent, which outlives the processes."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def begin(
    forks: forked.Server,
    store: TCPStore | int,
    ranks: list[int],
    size: int,
    fault: str = "",
    patience: float = 60,
) -> list[forked.Fork]:
    """Start processes on the code. `store`: that of an agent, or the port of the main process's own."""
    port = store if isinstance(store, int) else store.port
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size),
        "TORCHELASTIC_USE_AGENT_STORE": str(not isinstance(store, int)), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    code = CODE.format(fault=fault, patience=patience)
    return [forks.start(code, shared | {"RANK": str(rank), "LOCAL_RANK": "0"}) for rank in ranks]


def test_who_does_not_come_is_named(forks: forked.Server, free_port: int) -> None:
    """The last of three never starts; the store is the main process's."""
    first, second = begin(forks, free_port, [0, 1], 3, patience=3)
    status, _, error = first.end()
    expected = rf"error: of 3 processes, these did not come within 3 s: 2 \(those on {HOST} did\); .*\n"
    assert re.fullmatch(expected, error), error
    assert status == 1
    status, _, error = second.end()
    assert re.fullmatch(r"error: .*\n", error), error
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
def test_who_hangs_before_the_first_sum_is_told(
    fault: str, message: str, forks: forked.Server, agent: TCPStore
) -> None:
    begun = time.monotonic()
    first, _ = begin(forks, agent, [0, 1], 2, fault, patience=3)
    status, _, error = first.end()
    assert re.fullmatch(f"error: {message}\n", error), error
    assert status == 1
    assert time.monotonic() - begun < 30


def test_a_missing_main_process_is_named(forks: forked.Server, agent: TCPStore, free_port: int) -> None:
    """The agent's store answers, or nothing does at this port or this name."""
    found = [*begin(forks, agent, [1], 2, patience=1), *begin(forks, free_port, [1], 2, patience=1)]
    errors = [process.end() for process in found]
    expected = rf"error: process 0 did not come within 1 s \(process 1 on {HOST} did\); .*\n"
    assert re.fullmatch(expected, errors[0][2]), errors
    expected = (
        rf"error: process 1 on {HOST} cannot reach the store of the main process at MASTER_ADDR 127.0.0.1, "
        rf"MASTER_PORT {free_port} \(Connection refused\); .*\n"
    )
    assert re.fullmatch(expected, errors[1][2]), errors
    assert [status for status, *_ in errors] == [1, 1]


def test_a_port_that_is_taken_is_named(forks: forked.Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (first,) = begin(forks, port, [0], 2, patience=1)
        status, _, error = first.end()
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


def test_one_that_ends_ends_all_and_the_next_ones_meet_anew(forks: forked.Server, agent: TCPStore) -> None:
    """By way of one store, which is full of words of the dead; the last group has another size."""
    for fault, (status, why) in ENDS.items():
        first, second = begin(forks, agent, [0, 1], 2, fault)
        ends = [second.end()]
        ended = time.monotonic()
        ends.append(first.end())
        assert time.monotonic() - ended < 5
        assert [end[0] for end in ends] == [status, 1]
        assert re.fullmatch(rf"error: process 0 ends because {why}; .*\n", ends[1][2]), ends
        assert ("RuntimeError: a defect" in ends[0][2]) == (fault == "raises")
    assert [process.end() for process in begin(forks, agent, [0, 1, 2], 3)] == 3 * [(0, "done\n", "")]
