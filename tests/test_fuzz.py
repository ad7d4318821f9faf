"""The fuzz sees what goes wrong, and a small part of it passes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import fuzz
import pytest
from conftest import start

CASE = fuzz.Case(0, "h264.mp4", "whole")


def crash(case: fuzz.Case, path: Path, seed: int) -> tuple[str, str]:
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    os.abort()


def hang(case: fuzz.Case, path: Path, seed: int) -> tuple[str, str]:
    time.sleep(60)
    return "read", ""


def fail(case: fuzz.Case, path: Path, seed: int) -> tuple[str, str]:
    raise KeyError("packet")


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, in Python 3.12
@pytest.mark.parametrize(
    ("check", "outcome", "detail"),
    [
        (crash, "crash", "SIGABRT"),
        (hang, "hang", "after 1 seconds"),
        (fail, "exception", "KeyError: 'packet'"),
    ],
)
def test_failures_are_seen(tmp_path: Path, check: fuzz.Check, outcome: str, detail: str) -> None:
    found = fuzz.isolated(check, CASE, tmp_path / "a.mp4", 0, 1)
    assert found[0] == outcome
    assert detail in found[1]


def test_wrong_frames_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz.build_originals(tmp_path, ["h264.mp4"])
    path = tmp_path / "h264.mp4"
    assert fuzz.read(CASE, path, 0, backend="pyav") == ("read", "60 frames")
    expected = fuzz.plain_decoding(path)
    monkeypatch.setattr(fuzz, "plain_decoding", lambda path: [*expected[:30], *expected[31:], expected[30]])
    outcome, detail = fuzz.read(CASE, path, 0, backend="pyav")
    assert outcome == "wrong"
    assert "frame 30 of 60" in detail
    monkeypatch.setattr(fuzz, "plain_decoding", lambda path: expected[1:])
    assert fuzz.read(CASE, path, 0, backend="pyav")[0] == "wrong"
    path.write_bytes(b"")
    assert fuzz.read(CASE, path, 0, backend="pyav")[0] == "wrong"  # a sound video must be read


def test_files_are_the_same_at_every_call(tmp_path: Path) -> None:
    cases = fuzz.plan(400)
    chosen = [case for case in cases if case.kind == "h264.mp4" and case.damage != "whole"]
    assert len({case.damage for case in chosen}) > 5
    fuzz.build_originals(tmp_path, ["h264.mp4"])
    whole = (tmp_path / "h264.mp4").read_bytes()
    for case in chosen:
        damaged = fuzz.make(case, tmp_path, tmp_path, 0).read_bytes()
        assert damaged != whole
        assert fuzz.make(case, tmp_path, tmp_path, 0).read_bytes() == damaged


@pytest.mark.slow
def test_damaged_videos_are_read_or_refused(tmp_path: Path) -> None:
    """Of every thirtieth file; with every fourth, which preparation scripts examine too, it takes longer."""
    numbers = [str(n) for n, case in enumerate(fuzz.plan(1000)) if n % 30 == 7 and case.damage != "whole"]
    process = start("tests/fuzz.py", "--files", "1000", "--out", str(tmp_path), "--only", *numbers)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    totals = next(line.split() for line in output.splitlines() if line.startswith("pyav "))
    assert int(totals[1]) == len(numbers)
    assert int(totals[2]) > 3
    assert int(totals[3]) > 3
    assert totals[4:] == ["0"] * 4
