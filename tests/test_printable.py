"""Error lines and logs: names of any content or length stay one line that cannot drive a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import load_script

from video_iresnet.runtime.ending import exit_code
from video_iresnet.runtime.errors import InputError, printable
from video_iresnet.runtime.logging import log, setup_logging

HOSTILE = "a\x1b[2J\x1b]0;owned\x07\r\n\x9bb\u202e\u2028\udcfe.mp4"
SHOWN = r"a\x1b[2J\x1b]0;owned\x07\r\n\x9bb\u202e\u2028\udcfe.mp4"


def test_control_characters_are_escaped_and_words_are_not() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("Füße 動画 \\x1b 'é' 🎬.mp4") == "Füße 動画 \\x1b 'é' 🎬.mp4"


def test_long_lines_are_cut_in_the_middle() -> None:
    text = printable(f"label 9 of line 3 in {'n' * 100_000} is outside [0, 8); correct the list")
    assert text.startswith("label 9 of line 3 in nnn")
    assert text.endswith("nnn is outside [0, 8); correct the list")
    assert " ... " in text
    assert len(text) < 2100
    assert len(printable("\x1b" * 100_000)) < 2100


def test_errors_are_one_printable_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def fail() -> None:
        raise InputError(f"{HOSTILE} is missing")

    assert exit_code(fail) == 1
    assert capsys.readouterr().err == f"error: {SHOWN} is missing\n"
    for script, arguments in {
        "tools/run_net.py": ["--cfg", f"{tmp_path}/{HOSTILE}.yaml"],
        "tools/complexity.py": ["--cfg", f"{tmp_path}/{HOSTILE}.yaml"],
        "tools/show_clips.py": ["--cfg", f"{tmp_path}/{HOSTILE}.yaml", "--out", str(tmp_path / "a.png")],
        "tools/export.py": ["--checkpoint", f"{tmp_path}/{HOSTILE}", "--out", str(tmp_path / "a.pt2")],
    }.items():
        assert load_script(script).main(arguments) == 1
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert SHOWN in text
        assert text.count("\n") == 1
        assert text[:-1].isprintable()


def test_logs_are_printable(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    setup_logging(tmp_path, 0)
    log.warning("cannot read %s: %s", HOSTILE, "n" * 100_000)
    try:
        raise KeyError(3)
    except KeyError:
        log.exception("with a traceback")
    written = (tmp_path / "stdout.log").read_text(encoding="utf-8")
    assert capsys.readouterr().out == written
    first, second, *traceback = written.splitlines()
    assert f"cannot read {SHOWN}: nnn" in first
    assert len(first) < 2100
    assert second.endswith("with a traceback")
    assert traceback[0].startswith("Traceback")
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        handler.close()
