"""The error for what a user can put right, and how scripts tell it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import TracebackType


class InputError(ValueError):
    """Something that was given is wrong; the message is one line with the name, the value, what was expected
    and the remedy.
    """


def reason(error: Exception) -> str:
    """Why, in a few words: what the system or FFmpeg calls it, without the number and the file, else the
    error's own text.
    """
    return str(getattr(error, "strerror", None) or error)


def quiet_interrupts() -> None:
    """Make a Ctrl-C that nothing catches, as while libraries are imported, one line and exit status 130."""

    def leave(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, traceback)
            return
        if os.environ.get("RANK", "0") == "0":
            print("stopped", file=sys.stderr)
        sys.exit(130)

    sys.excepthook = leave


def exit_code(work: Callable[[], None]) -> int:
    """Do the work of a preparation script; what its process should exit with. A user's error and Ctrl-C are
    one line each.
    """
    try:
        work()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is complete is kept, and the same command goes on", file=sys.stderr)
        return 130
    return 0
