"""Files and folders: what one process holds, another is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.storage import exclusive, remove_leftovers

HOLD = """
import os, sys, time
from pathlib import Path
from video_iresnet.runtime.storage import exclusive, remove_leftovers
with exclusive(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(5)  # a worker that outlives its parent
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        expected = f"{tmp_path} is in use by process {holder.pid} on .*; wait until it ends, or name another"
        with pytest.raises(InputError, match=expected), exclusive(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with exclusive(tmp_path):
            pass


WRITE = """
import sys, time
from video_iresnet.runtime.storage import atomic_write
with atomic_write(sys.argv[1]) as file:
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_another_process_is_writing_is_no_leftover(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE, str(tmp_path / "a.csv")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "writing\n"
        remove_leftovers(tmp_path, {"a.csv"})
        assert len(list(tmp_path.glob(".a.csv.*.partial"))) == 1
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        remove_leftovers(tmp_path, {"b.csv"})
        assert len(list(tmp_path.glob(".a.csv.*.partial"))) == 1
        remove_leftovers(tmp_path, {"a.csv"})
        assert not list(tmp_path.glob(".*.partial"))
