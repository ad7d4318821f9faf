"""The errors that end a script in one line; see ending.py."""

from __future__ import annotations

import signal

# Of a printed line, from its beginning and from its end: enough for paths and for the remedy at the end.
LONGEST_HALF = 1000


class InputError(ValueError):
    """Something that was given is wrong; the message is one line with the name, the value, what was expected
    and the remedy.
    """


class InterruptedRunError(Exception):
    """A run that ended in order on Ctrl-C, SIGTERM or SIGUSR1; the message says what was saved."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number or signal.SIGTERM


class LostProcessError(Exception):
    """Another process of the run has ended, so this one cannot go on."""


def reason(error: BaseException) -> str:
    """Return why, in one line to stand within a sentence: what the system or FFmpeg calls it, without the
    number and the file, else the first line of the error's own text, else its type.
    """
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")


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
