"""The error for what a user can put right, and how scripts tell it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

# Of a printed line, from its beginning and from its end: enough for paths and for the remedy at the end.
LONGEST_HALF = 1000


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


def printable(text: str) -> str:
    """The text as one line for a terminal or a log: what is not printable (control characters, line ends,
    surrogates, marks that turn the direction of writing) is escaped, and a long line is cut in the middle.
    """
    if len(text) > 2 * LONGEST_HALF:
        text = f"{text[:LONGEST_HALF]} ... {text[-LONGEST_HALF:]}"
    if text.isprintable():
        return text
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped if len(escaped) <= 2 * LONGEST_HALF else printable(escaped)


def print_error(error: Exception) -> None:
    """Tell a user's error on stderr, in one line."""
    print(f"error: {printable(str(error))}", file=sys.stderr)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a script as Ctrl-C does."""


def exit_code(work: Callable[[], None], *expected: type[Exception]) -> int:
    """Do the work of a script; return the exit status of its process.

    A user's error (InputError, OSError or one of `expected`), Ctrl-C and SIGTERM end the work in one line,
    after its clean-up.
    """
    known: tuple[type[Exception], ...] = (InputError, OSError, *expected)
    try:
        with _sigterm_raised():
            work()
    except known as error:
        print_error(error)
        return 1
    except KeyboardInterrupt as stop:
        print("stopped; what is complete is kept, and the same command goes on", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    return 0


@contextmanager
def _sigterm_raised() -> Iterator[None]:
    """Raise Terminated at the first SIGTERM, and ignore more of them, which would cut the clean-up short."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
