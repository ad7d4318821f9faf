"""What is found out about a machine: one finding at a time, and checks that never fail."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ..runtime.errors import printable, reason

OK, WARNING, PROBLEM = "ok", "warning", "problem"
# Modules of this folder, each with its CHECKS. They are imported one after the other, so that a library that
# cannot be loaded is a finding.
MODULES = ("machine", "devices", "decoders")


class Finding(NamedTuple):
    """One row of the table: what was looked at, its status, what was found, and what helps."""

    name: str
    status: str
    found: str
    remedy: str = ""


# Looks at one thing; the folder is that of the runs.
Check: TypeAlias = Callable[[Path], Iterator[Finding]]


def examine(folder: Path, modules: tuple[str, ...] = MODULES) -> Iterator[Finding]:
    """Yield what all checks find. Whatever an exception says of a check is its finding."""
    for name in modules:
        try:
            checks: tuple[Check, ...] = importlib.import_module(f".{name}", __package__).CHECKS
        except Exception as error:  # a broken library may raise anything
            remedy = "install the package again with its dependencies: pip install -r requirements.txt"
            yield Finding(name, PROBLEM, f"cannot be looked at: {_text(error)}", remedy)
            continue
        for check in checks:
            yield from run_check(check, folder)


def run_check(check: Check, folder: Path) -> Iterator[Finding]:
    """Yield what a check finds, up to an exception, which is a problem."""
    try:
        yield from check(folder)
    except Exception as error:
        yield Finding(check.__name__.replace("_", " "), PROBLEM, f"this check failed: {_text(error)}")


def worst(findings: list[Finding]) -> str:
    """Return the worst status."""
    order = (OK, WARNING, PROBLEM)
    return max((finding.status for finding in findings), key=order.index, default=OK)


def _text(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {reason(error)}")
