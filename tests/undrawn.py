"""Leaves figures empty in the processes that tests start: drawing those of a page takes longer than a small
run. Imported before they are forked; see starts.py.
"""

from __future__ import annotations

from io import StringIO
from typing import Any

from matplotlib.figure import Figure


def write_nothing(figure: Figure, file: StringIO, **settings: Any) -> None:
    file.write('<svg viewBox="0 0 1 1" xmlns="http://www.w3.org/2000/svg"></svg>')


Figure.savefig = write_nothing
