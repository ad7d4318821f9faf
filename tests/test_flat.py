"""The script tests/flat.py: it finds what grows."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from drill import Start
from flat import Look, growing, look


def test_what_grows_is_named() -> None:
    flat = {epoch: Look(400 + epoch % 3, 300, 50 + epoch % 4, 9) for epoch in range(6, 51)}
    assert growing(flat, 48) == []
    leaks = {epoch: Look(400 + 0.5 * epoch, 300, 50 + epoch, 9) for epoch in range(6, 51)}
    assert growing(leaks, 48) == ["main", "descriptors"]
    threads = {epoch: Look(400, 300 + epoch, 50, 9 + epoch // 40) for epoch in range(6, 51)}
    assert growing(threads, 48) == ["others", "threads"]


def test_a_process_and_its_child_are_looked_at(tmp_path: Path) -> None:
    child = (
        "import time; files = [open('/dev/null') for _ in range(100)]; print(1, flush=True); time.sleep(60)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start = Start([sys.executable, "-c", code], tmp_path / "out.txt")
    try:
        while not start.output.read_text():
            time.sleep(0.05)
        seen = look(start)
    finally:
        start.kill()
    assert seen.descriptors > 105
    assert seen.threads == 2
    assert 2 < seen.others < 50
    assert 2 < seen.main < 50
