"""Requests to stop, and processes that end together with the one that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PARENT = os.getppid()  # at import; another one later means that it is gone
# Seconds that an orphaned process may take for a requested stop, as long as torchrun waits.
GRACE = 30.0


class StopRequest:
    """Turns Ctrl-C, SIGTERM and SIGUSR1 (SLURM's warning) into a flag, so that a run can save and end in
    order.

    A supervisor and torchrun may both send the same signal, so only a Ctrl-C at least a second later ends the
    process at once, with KeyboardInterrupt.
    """

    def __init__(self, signals: Sequence[signal.Signals] = TO_STOP) -> None:
        self.signal = 0
        self._since = 0.0
        for number in signals:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > 1:
            raise KeyboardInterrupt("stopped at once; the last checkpoint is intact")

    def __bool__(self) -> bool:
        return self.signal != 0


@contextmanager
def starting_workers() -> Iterator[None]:
    """Start worker processes in this block: they block the signals that `follow_parent` handles from the
    start.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TO_STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """End this worker together with its parent, even after kill -9, and on the parent's SIGTERM.

    Other requests to stop may reach the whole process group; they are left to the parent.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, TO_STOP)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        threading.Thread(target=_end_with, args=(parent.pid,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait(TO_STOP, 1)
        if received is not None and received.si_signo == signal.SIGTERM and received.si_pid == parent:
            break
    os._exit(0)


def follow_launcher(stop: StopRequest) -> None:
    """End this process within seconds after torchrun's agent, which started it, was killed: the run may have
    been restarted. Does nothing without an agent.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with_launcher, args=(stop,), daemon=True).start()


def launcher_is_gone() -> bool:
    """Whether torchrun's agent started this process and was killed."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != PARENT


def _end_with_launcher(stop: StopRequest) -> None:
    while not launcher_is_gone():
        time.sleep(1)
    time.sleep(2)  # the agent may have been killed by a signal that asks all to stop
    if stop:
        time.sleep(GRACE)
    tell_of_launcher()
    os._exit(1)


_told = threading.Lock()


def tell_of_launcher() -> None:
    """Print once per machine that torchrun's agent is gone."""
    if os.environ.get("LOCAL_RANK") == "0" and _told.acquire(blocking=False):
        line = f"torchrun's agent (process {PARENT}) was killed, so its processes end too\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
