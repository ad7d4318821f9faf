"""How scripts end: an error that a user can put right, Ctrl-C and SIGTERM are one line and an exit status.

Scripts import this before the libraries that take seconds to import: from then on a Ctrl-C that nothing
catches is one line too.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from .errors import InputError, InterruptedRunError, LostProcessError, printable
from .signals import launcher_is_gone, tell_of_launcher


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a script as Ctrl-C does."""


def exit_code(
    work: Callable[[], int | None], *expected: type[Exception], command: str = "the same command"
) -> int:
    """Do the work of a script; return the exit status of its process.

    The work returns nothing, or the status of processes that it started, which have said why. InputError,
    OSError, an error of `expected`, a lost process, Ctrl-C and SIGTERM end it in one line, after its
    clean-up; of several processes of a run, one prints it. `command` goes on with work that was stopped.
    """
    known: tuple[type[Exception], ...] = (InputError, OSError, *expected)
    try:
        with _sigterm_raised():
            return work() or 0
    except known as error:
        _tell(f"error: {printable(str(error))}", leave=True)
        return 1
    except InterruptedRunError as stop:
        _tell(f"{stop}\ngo on with: {command}", leave=True)
        return 128 + stop.signal_number
    except LostProcessError as lost:
        if launcher_is_gone():
            tell_of_launcher()
        else:  # every process says so: the one that speaks for all may be the one that is lost
            print(f"error: {lost}; go on with: {command}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        _tell(str(stop) or "stopped; what is complete is kept, and the same command goes on")
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def _tell(line: str, leave: bool = False) -> None:
    """Print a line on stderr, once for all processes of a run: by the main one or, before they have met, by
    one of each machine. With `leave`, this process then leaves their group.
    """
    # Not imported here: some scripts do without torch, and an interrupt may have come while it was imported.
    distributed: Any = sys.modules.get("torch.distributed")
    have_met = hasattr(distributed, "is_initialized") and distributed.is_initialized()
    if os.environ.get("RANK" if have_met else "LOCAL_RANK", "0") == "0":
        print(line, file=sys.stderr)
    if have_met and leave:
        distributed.destroy_process_group()


@contextmanager
def _sigterm_raised() -> Iterator[None]:
    """Raise Terminated at the first SIGTERM, and ignore more of them, which would cut the end short. A
    StopRequest made in the block replaces this.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, before)


def _tell_interrupt(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    _tell("stopped")
    sys.exit(130)


sys.excepthook = _tell_interrupt
