"""Scripts end in one line: a user's error, Ctrl-C and SIGTERM alike."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys

import pytest
import torch.distributed as dist
from conftest import ROOT

from video_iresnet.runtime.distributed import group_of_run
from video_iresnet.runtime.ending import exit_code
from video_iresnet.runtime.errors import InputError, InterruptedRunError, LostProcessError, reason

WAIT = """
import os, signal, sys, time
from video_iresnet.runtime.ending import exit_code
def work():
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.5)  # tidying up is not cut short by a second signal
        print("tidied up", flush=True)
code = exit_code(work)
if code == 143:
    os.kill(os.getpid(), signal.SIGTERM)  # nor is the end of the process
sys.exit(code)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_script_tidies_up_and_ends_in_one_line(number: signal.Signals, status: int) -> None:
    command = [sys.executable, "-c", WAIT]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        if number == signal.SIGTERM:
            process.send_signal(number)
        out, error = process.communicate()
    assert process.returncode == status
    assert out == "tidied up\n"
    assert error.startswith("stopped")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.mp4"), "No such file or directory"),
        (OSError("its checksum is wrong."), "its checksum is wrong"),
        (RuntimeError("first line:\nsecond line"), "first line"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_reason_of_an_error_is_part_of_a_line(error: Exception, text: str) -> None:
    assert reason(error) == text


def fail(error: BaseException) -> None:
    raise error


def test_errors_are_one_line_and_others_are_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert exit_code(lambda: fail(InputError("a is 3; expected 4"))) == 1
    assert exit_code(lambda: fail(FileNotFoundError(2, "No such file", "b.csv"))) == 1
    assert exit_code(lambda: fail(KeyError("key")), KeyError) == 1
    assert capsys.readouterr().err == (
        "error: a is 3; expected 4\nerror: [Errno 2] No such file: 'b.csv'\nerror: 'key'\n"
    )
    with pytest.raises(KeyError):
        exit_code(lambda: fail(KeyError("a bug")))
    assert exit_code(lambda: None) == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_work_returns_the_status_of_what_it_started() -> None:
    assert exit_code(lambda: 3) == 3


# How the work ends: (its error, the exit status, the line).
ENDS: dict[str, tuple[BaseException, int, str]] = {
    "input": (InputError("a is 3"), 1, "error: a is 3\n"),
    "interrupted": (InterruptedRunError(signal.SIGUSR1, "saved b"), 138, "saved b\ngo on with: python c\n"),
    "at once": (KeyboardInterrupt("stopped at once"), 130, "stopped at once\n"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("have_met", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_speaks_for_all(
    rank: int, have_met: bool, end: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main one or, before they have met, the first of each machine. A group that may still communicate is
    not left, which could take long.
    """
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setenv("RANK", str(rank) if have_met else "9")
    monkeypatch.setenv("LOCAL_RANK", "9" if have_met else str(rank))
    if have_met:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    error, status, line = ENDS[end]
    try:
        assert exit_code(lambda: fail(error), command="python c") == status
    finally:
        is_left = not dist.is_initialized()
        if not is_left:
            dist.destroy_process_group()
    assert capsys.readouterr().err == (line if rank == 0 else "")
    is_cut = have_met and end == "at once"
    assert is_left == (not is_cut)
    assert ended == is_cut * [status]


def test_every_process_tells_that_another_one_is_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that would speak for all may be that one. They say why, if it could tell."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(platform, "node", lambda: "node1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        closed = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:54001")
        with (
            pytest.raises(LostProcessError, match="ends because another one of this run did;"),
            group_of_run(),
        ):
            raise closed
        with pytest.raises(RuntimeError, match="a bug"), group_of_run():
            raise RuntimeError("a bug\nof two lines")
        with pytest.raises(InputError), group_of_run():
            raise InputError("a consequence")
        with pytest.raises(LostProcessError) as lost, group_of_run():
            raise closed
    finally:
        dist.destroy_process_group()
    assert exit_code(lambda: fail(lost.value), command="python c") == 1
    assert capsys.readouterr().err == (
        "error: process 0 ends because process 0 on node1 did (RuntimeError: a bug); the last checkpoint is "
        "intact; go on with: python c\n"
    )
