"""The rules of every script in tools/ and data_prep/: it works from a fresh clone, and Ctrl-C is one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = sorted(
    str(path.relative_to(ROOT)) for folder in ("tools", "data_prep") for path in (ROOT / folder).glob("*.py")
)
# What happens where the first heavy library is imported: someone presses Ctrl-C.
INTERRUPT = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)"


@pytest.mark.parametrize("script", SCRIPTS)
def test_interrupted_imports_are_one_line(script: str, tmp_path: Path) -> None:
    assert interrupted(script, tmp_path, rank="0") == (130, "", "stopped\n")


def test_interrupted_imports_are_one_line_for_all_processes(tmp_path: Path) -> None:
    """The first one of each machine prints it."""
    assert interrupted("tools/run_net.py", tmp_path, rank="1") == (130, "", "")


def interrupted(script: str, folder: Path, rank: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a script that is stopped while it imports."""
    for library in ("av", "iopath", "numpy", "torch"):
        (folder / f"{library}.py").write_text(INTERRUPT)
    done = subprocess.run(
        [sys.executable, ROOT / script],
        env=os.environ | {"PYTHONPATH": str(folder), "LOCAL_RANK": rank},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_scripts_run_from_any_folder_of_a_fresh_clone(tmp_path: Path) -> None:
    """The package beside a script is the one that it imports, whatever else is installed."""
    clone, elsewhere = tmp_path / "clone", tmp_path / "elsewhere"
    for folder in ("tools", "data_prep", "video_iresnet"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__"))
    elsewhere.mkdir()
    code = """
import contextlib, io, runpy, sys
path = list(sys.path)
for script in sys.argv[1:]:
    sys.argv, sys.path[:], text = [script, "--help"], path, io.StringIO()
    for name in [name for name in sys.modules if name.split(".")[0] == "video_iresnet"]:
        del sys.modules[name]
    with contextlib.redirect_stdout(text):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            assert end.code == 0, script
    assert "usage: " in text.getvalue(), script
    print(script, sys.modules["video_iresnet"].__file__)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(clone / script) for script in SCRIPTS)],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    package = clone / "video_iresnet/__init__.py"
    assert done.stdout.splitlines() == [f"{clone / script} {package}" for script in SCRIPTS], done.stderr
