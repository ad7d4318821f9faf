"""Processes for tests of several of them. `python tests/forked.py MODULE ...` imports the modules once, which
takes seconds for torch, and forks for each line of its input.

A line is a JSON list of the code to run, variables to set in the environment, and the files of output and
errors; the answer is the number of the process. Or it has such a number and the seconds to wait for
its end, after which it is killed; the answer is its exit status.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent


class Fork:
    """A process that runs code as an interpreter of its own would."""

    def __init__(self, server: Server, pid: int, files: list[Path]) -> None:
        self.server = server
        self.pid = pid
        self.files = files

    def end(self, seconds: float = 60) -> tuple[int, str, str]:
        """Wait for the end; return the exit status, negative for a signal, the output and the errors."""
        status = self.server.ask([self.pid, seconds])
        self.server.running.remove(self)
        output, errors = (file.read_text() for file in self.files)
        return status, output, errors


class Server:
    """The process that forks, from the side of a test."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.running: list[Fork] = []
        self._started = 0

    def start(self, code: str, environment: dict[str, str]) -> Fork:
        self._started += 1
        files = [self.folder / f"{self._started}.{name}" for name in ("out", "err")]
        self.running.append(Fork(self, self.ask([code, environment, *map(str, files)]), files))
        return self.running[-1]

    def ask(self, question: list[Any]) -> int:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@contextmanager
def forking(folder: Path, *modules: str) -> Iterator[Server]:
    """Start the process that forks; what it started is killed at the end of the block."""
    command = [sys.executable, __file__, *modules]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        server = Server(process, folder)
        try:
            yield server
        finally:
            for fork in server.running.copy():
                fork.end(0)
            process.communicate()


def serve(modules: list[str]) -> None:
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # the end of a fork need not search what it shares with this process
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question[0], int):
            print(_status(*question), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            code, environment, *files = question
            os.environ.update(environment)
            for number, file in enumerate(files, 1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            exec(code, {"__name__": "__main__"})
            sys.exit()


def _status(pid: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    serve(sys.argv[1:])
