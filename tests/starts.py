"""Python on a command line, in a process that costs a tenth of a new one: it is forked from one that has
imported what is slow to import.

All else is as in a new process: it imports the script and this project's modules, nothing was computed, and
signals, environment, folder and output are its own. What torchrun or multiprocessing start there is forked
from it in turn, unless TESTS_FORK is 0: OpenMP's threads, which have computed, do not live on in a fork.

`python tests/starts.py WORDS` does as `python WORDS` does, in a new process whose own ones are forked.
"""

from __future__ import annotations

import atexit
import gc
import itertools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from io import IOBase
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

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
        "yacs.config",
    ]
)


class Process:
    """A process that was forked, with what tests and torchrun use of subprocess.Popen."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self._process.start()
        self.pid = int(process.pid or 0)

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

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


class Forked(Process):
    """Python on `words`, a command line without its first word. Output and errors are one stream."""

    def __init__(
        self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], new_session: bool = False
    ) -> None:
        reader, writer = FORKING.Pipe(duplex=False)
        arguments = (words, cwd, dict(environment), new_session, writer)
        super().__init__(FORKING.Process(target=_python, args=arguments))
        atexit.register(self._process.kill)  # where a test failed before its end
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        reader.close()

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


def _python(
    words: Sequence[str], cwd: Path, environment: Mapping[str, str], new_session: bool, output: Connection
) -> None:
    """Do as `python WORDS` does."""
    gc.freeze()  # what was imported before is not searched for garbage
    if new_session:
        os.setsid()
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    os.chdir(cwd)
    multiprocessing.process.ORIGINAL_DIR = str(cwd)  # where spawned ones find the script
    multiprocessing.set_start_method(None, force=True)
    _run(words, environment)


def _run(words: Sequence[str], environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    first, *rest = words
    sys.path[:] = [str(Path(first).resolve().parent) if first[0] != "-" else "", *_path(environment)]
    sys.argv = list(words)
    if environment.get("TESTS_FORK") != "0":
        _fork_what_torchrun_starts()
        _fork_what_is_spawned()
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


def _fork_what_torchrun_starts() -> None:
    """For torchrun's agent in this process."""

    def popen(handler: SubprocessHandler, words: Sequence[str], environment: Mapping[str, str]) -> Process:
        assert words[:2] == (sys.executable, "-u"), words
        files = [handler._stdout, handler._stderr]
        context = multiprocessing.get_context("fork")
        return Process(context.Process(target=_worker, args=(words[2:], environment, files)))

    SubprocessHandler._popen = popen


def _worker(words: Sequence[str], environment: Mapping[str, str], files: Sequence[IOBase | None]) -> None:
    """Do as `python -u WORDS` does."""
    os.setsid()
    for number, file in enumerate(files, 1):
        if file:
            os.dup2(file.fileno(), number)
    _forget([])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)
    _run(words, environment)


def _fork_what_is_spawned() -> None:
    """For multiprocessing in this process."""
    spawn = multiprocessing.util.spawnv_passfds

    def fork(path: str, words: Sequence[str], descriptors: Sequence[int]) -> int:
        if "--multiprocessing-fork" not in words:
            return spawn(path, words, descriptors)
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            return pid
        status = 1
        try:
            _forget(descriptors)
            _, code, *rest = words[words.index("-c") :]
            sys.argv = ["-c", *rest]
            exec(code, {"__name__": "__main__"})
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        os._exit(status)

    multiprocessing.util.spawnv_passfds = fork


def _forget(descriptors: Sequence[int]) -> None:
    """Keep nothing of the process that forked this one but the modules that are slow to import, and files."""
    gc.freeze()
    atexit._clear()
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            own = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, own)
    kept = [2, *sorted(descriptors), os.sysconf("SC_OPEN_MAX")]
    for before, after in itertools.pairwise(kept):
        os.closerange(before + 1, after)
    resource_tracker._resource_tracker._fd = None
    for name in list(sys.modules):
        if name.partition(".")[0] == "video_iresnet" or name == "iopath.common.file_io":  # where it registers
            del sys.modules[name]


def _path(environment: Mapping[str, str]) -> list[str]:
    """Where modules are found, without what pytest has added."""
    tests = Path(__file__).parent
    added = {"", str(tests), str(tests.parent)} - set(environment.get("PYTHONPATH", "").split(os.pathsep))
    return [place for place in sys.path if place not in added]


if __name__ == "__main__":
    _run(sys.argv[1:], os.environ.copy())
