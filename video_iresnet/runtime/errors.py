"""Errors that end a script with one line; see ending.py."""

from __future__ import annotations

import signal

# Characters at both ends of a long printed line; enough for paths and for the remedy at the end.
LONGEST_HALF = 1000


class InputError(ValueError):
    """An incorrect input. The message is one line: the name, the value, what was expected, the remedy."""


class InterruptedRunError(Exception):
    """A run that ended in order on Ctrl-C, SIGTERM or SIGUSR1; the message says what was saved."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number or signal.SIGTERM


class LostProcessError(Exception):
    """Another process of the run ended, so this one cannot continue."""


def reason(error: BaseException) -> str:
    """Return the reason of an error in one line: the text of the system or FFmpeg without number and file, or
    else the first line of its own text, or else its type.
    """
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")


def missing_extra(what: str, extra: str, error: BaseException, more: str = "") -> InputError:
    """Return the error for a package of an extra of pyproject.toml that cannot be imported. `what` needs it;
    `more` is what else helps, from its comma on.
    """
    return InputError(
        f"{what} needs a package that cannot be loaded ({reason(error)}); "
        f"pip install 'video_iresnet[{extra}]'{more}"
    )


def printable(text: str) -> str:
    """Return the text as one line for a terminal or a log. Unprintable characters (control characters, line
    ends, surrogates, direction marks) are escaped, and a long line is cut in the middle.
    """
    if len(text) > 2 * LONGEST_HALF:
        text = f"{text[:LONGEST_HALF]} ... {text[-LONGEST_HALF:]}"
    if text.isprintable():
        return text
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped if len(escaped) <= 2 * LONGEST_HALF else printable(escaped)
