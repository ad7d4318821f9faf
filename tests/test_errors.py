"""Scripts end in one line: a user's error, Ctrl-C and SIGTERM alike."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from video_iresnet.runtime.errors import InputError, exit_code

WAIT = """
import sys, time
from video_iresnet.runtime.errors import exit_code
def work():
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.5)  # tidying up is not cut short by a second signal
        print("tidied up", flush=True)
sys.exit(exit_code(work))
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


def test_errors_are_one_line_and_others_are_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> None:
        raise error

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
