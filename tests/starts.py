"""Python on a command line, in a process that costs a tenth of a new one: it is forked from one that has
imported what is slow to import.

All else is as in a new process, but for the figures of pages, which stay empty: it imports the script and
this project's modules, nothing was computed, and signals, environment, folder and output are its own.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        "av",
        "fvcore.nn",
        "iopath.common.file_io",
        "jinja2",
        "matplotlib.backends.backend_svg",
        "matplotlib.figure",
        "safetensors.torch",
        "simplejpeg",
        "simplejson",
        "tabulate",
        "tensorboard.summary.writer.event_file_writer",
        "torch._dynamo",
        "torch.distributed.run",
        "torchvision.transforms",
        "undrawn",
        "yacs.config",
    ]
)


class Forked:
    """A process that was started; what tests use of subprocess.Popen, under the same names."""

    def __init__(
        self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], new_session: bool = False
    ) -> None:
        reader, writer = FORKING.Pipe(duplex=False)
        arguments = (words, cwd, dict(environment), new_session, writer)
        self._process = FORKING.Process(target=_python, args=arguments)
        self._process.start()
        atexit.register(self._process.kill)  # where a test failed before its end
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        reader.close()
        self.pid = int(self._process.pid or 0)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("python", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return the rest of the output and errors, once no process can write there any more."""
        text: list[str] = []
        thread = threading.Thread(target=lambda: text.append(self.stdout.read()), daemon=True)
        thread.start()
        thread.join(timeout)
        if not text:
            raise subprocess.TimeoutExpired("python", timeout or 0)
        self.stdout.close()
        self.wait(timeout)
        return text[0], None

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _python(
    words: Sequence[str], cwd: Path, environment: dict[str, str], new_session: bool, output: Connection
) -> None:
    """Do as `python WORDS` does."""
    gc.freeze()  # what was imported before is not searched for garbage
    if new_session:
        os.setsid()
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    multiprocessing.process.ORIGINAL_DIR = str(cwd)  # where spawned ones find the script
    multiprocessing.set_start_method(None, force=True)
    first, *rest = words
    sys.path[:] = [str(Path(first).resolve().parent) if first[0] != "-" else "", *_path(environment)]
    sys.argv = list(words)
    try:
        if first == "-c":
            sys.argv = [first, *rest[1:]]
            exec(rest[0], {"__name__": "__main__"})
        elif first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(first, run_name="__main__")
    except (Exception, KeyboardInterrupt):
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()


def _path(environment: Mapping[str, str]) -> list[str]:
    """Where modules are found, without what pytest has added."""
    tests = Path(__file__).parent
    added = {"", str(tests), str(tests.parent)} - set(environment.get("PYTHONPATH", "").split(os.pathsep))
    return [place for place in sys.path if place not in added]
