"""How scripts end: errors that users can correct, Ctrl-C and SIGTERM become one line and an exit status.

Scripts import this first: from then on, Ctrl-C during slow imports is one line too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from .errors import InputError, InterruptedRunError, LostProcessError, printable
from .signals import launcher_is_gone, tell_of_launcher


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a script like Ctrl-C."""


def exit_code(
    work: Callable[[], int | None], *expected: type[Exception], command: str = "the same command"
) -> int:
    """Run the work of a script and return the exit status of the process.

    The work returns nothing, or the exit status of processes that it started, which have printed their
    errors. InputError, OSError, errors of `expected`, a lost process, Ctrl-C and SIGTERM end it with one
    line, printed by one process of a run. `command` resumes stopped work.
    """
    known: tuple[type[Exception], ...] = (InputError, OSError, *expected)
    try:
        with _sigterm_raised():
            return work() or 0
    except known as error:
        _tell(f"error: {printable(str(error))}")
        _leave_group(1)
        return 1
    except InterruptedRunError as stop:
        _tell(f"{stop}\ngo on with: {command}")
        _leave_group(128 + stop.signal_number)
        return 128 + stop.signal_number
    except LostProcessError as lost:
        if launcher_is_gone():
            tell_of_launcher()
        else:  # every process prints it: the one that speaks for all may be the lost one
            print(f"error: {printable(str(lost))}; go on with: {command}", file=sys.stderr)
        _end_if_in_group(1)
        return 1
    except KeyboardInterrupt as stop:
        _tell(str(stop) or "stopped; what is complete is kept, and the same command goes on")
        status = 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
        _end_if_in_group(status)
        return status
    except Exception as defect:
        if _group():
            sys.excepthook(type(defect), defect, defect.__traceback__)
            _end_if_in_group(1)
        raise


def _tell(line: str) -> None:
    """Print a line on stderr once per run: on the main process or, before the processes have met, once per
    machine.
    """
    if os.environ.get("RANK" if _group() else "LOCAL_RANK", "0") == "0":
        print(line, file=sys.stderr)


def _group() -> Any:
    """Return torch.distributed if this process is in a group."""
    # Not imported here: some scripts work without torch, and the interrupt may have come during its import.
    distributed: Any = sys.modules.get("torch.distributed")
    return distributed if hasattr(distributed, "is_initialized") and distributed.is_initialized() else None


def _leave_group(status: int) -> None:
    """Leave the process group, if there is one. Where a message that no one answers holds this up, end the
    process.
    """
    if group := _group():
        leaving = threading.Thread(target=group.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(5)
        if leaving.is_alive():
            _end_if_in_group(status)


def _end_if_in_group(status: int) -> None:
    """End the process now if it is in a group, whose communication may have failed: while the interpreter is
    taken down, threads that still hold messages would wait for other processes, or abort this one.
    """
    if _group():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextmanager
def _sigterm_raised() -> Iterator[None]:
    """Raise Terminated at the first SIGTERM and ignore further ones, which would interrupt the cleanup. A
    StopRequest in the block replaces this.
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
