"""The command `video-iresnet`; the wheel and the source distribution, installed where no clone is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, small_overrides

from video_iresnet.__main__ import listing, main, summary
from video_iresnet.config import load_config, load_with_notes
from video_iresnet.runtime import root
from video_iresnet.runtime.errors import InputError

SCRIPTS = sorted(path for folder in ("tools", "data_prep") for path in (ROOT / folder).glob("*.py"))
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_scripts_are_found_by_their_names() -> None:
    assert sorted(root.scripts().values()) == SCRIPTS  # no two have the same name
    assert len(SCRIPTS) >= 14


@pytest.mark.parametrize("columns", [60, 80, 110])
def test_the_listing_describes_every_script(columns: int) -> None:
    text = listing(columns)
    assert max(map(len, text.splitlines())) <= columns
    words = " ".join(text.split())
    for path in SCRIPTS:
        assert f" {path.stem} {summary(path)}" in words
        assert 10 < len(summary(path)) < 200
    assert summary(ROOT / "tools/run_net.py") == "Train and test"


def test_help_imports_no_torch() -> None:
    code = "import sys; from video_iresnet.__main__ import main; sys.argv[1:] = ['--help']\ntry: main()\n"
    code += "except SystemExit as end: print(end.code, {'torch', 'av', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n0 set()\n")
    assert "  run_net         Train and test\n" in done.stdout


def test_without_a_name_it_prints_its_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["video-iresnet"])
    with pytest.raises(SystemExit):
        main()
    assert "tools:\n" in capsys.readouterr().out


def test_an_unknown_name_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["video-iresnet", "run-net\n", "--help"])
    assert main() == 1
    expected = (
        r"error: there is no script run-net\n; did you mean run_net? `video-iresnet --help` lists all" + "\n"
    )
    assert capsys.readouterr().err == expected


def test_the_command_of_a_clone_needs_no_installation() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
         "import runpy; sys.argv = ['video-iresnet', 'moving_shapes', '--help']\n"
         "runpy.run_module('video_iresnet', run_name='__main__')"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("usage: moving_shapes.py")


def test_configs_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/demo/iR3D18_adamw.yaml").SOLVER.EMA_DECAY == 0.95
    with pytest.raises(InputError, match=r"configs/demo/gone.yaml does not exist, neither here nor in /"):
        load_with_notes("configs/demo/gone.yaml")
    (tmp_path / "configs/demo").mkdir(parents=True)
    (tmp_path / "configs/demo/iR3D18_adamw.yaml").write_text("SOLVER: {MAX_EPOCH: 3}")
    assert load_config("configs/demo/iR3D18_adamw.yaml").SOLVER.MAX_EPOCH == 3  # the one here comes first
    with pytest.raises(InputError, match="cannot read pyproject"):
        load_config("pyproject.toml")  # only configs


def test_words_that_start_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    assert root.script_words("tools/run_net.py") == ["tools/run_net.py"]
    monkeypatch.setattr(root, "IS_INSTALLED", True)
    assert root.script_words("/x/tools/run_net.py") == ["-m", "video_iresnet", "run_net"]


def test_the_image_holds_what_it_runs() -> None:
    """Its commands and config exist, and the wheel's files are not ignored."""
    text = (ROOT / "Dockerfile").read_text()
    assert (
        set(re.findall(r"video-iresnet ([a-z_]+) ", text))
        == {"moving_shapes", "run_net"}
        <= {*root.scripts()}
    )
    for config in re.findall(r"configs/[\w/.]+", text):
        load_config(config)
    kept = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    wheel = re.findall(r"^only-include = \[(.+)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
    assert kept == {*re.findall(r'"(\w+)"', wheel), "pyproject.toml", "README.md", "LICENSE"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel built from it, without a network."""
    pytest.importorskip("build", reason="build is not installed")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        capture_output=True,
        check=True,
    )
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command in a new environment that holds the wheel, beside the dependencies of this one but not
    its editable install, and in an empty folder.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv/bin/python"
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, capture_output=True, check=True)
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    # A folder named in a .pth file is searched, but its own .pth files are not read.
    (packages / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    empty = folder / "empty"
    empty.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(python.parent / command[0]), *command[1:]],
            cwd=empty, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.mark.slow
def test_the_source_distribution_is_complete(built: Path) -> None:
    """It holds what is needed to build, to test and to read; the wheel was built from it."""
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    needed = tracked.stdout.split() or ["pyproject.toml", "LICENSE", "tests/conftest.py"]
    assert set(needed) <= names
    assert not {name for name in names if name.split("/")[0] in {".venv", "output", "data"}}


@pytest.mark.slow
def test_the_wheel_holds_the_package_scripts_and_configs(installed: Run) -> None:
    code = "import video_iresnet.runtime.root as r; print(r.PACKAGE, *sorted(map(str, r.PACKAGE.rglob('*'))))"
    package, *files = installed("python", "-c", code).stdout.split()
    assert "/venv/lib/" in package
    found = {str(Path(file).relative_to(package)) for file in files if not file.endswith(".pyc")}
    for folder in ("video_iresnet", "tools", "data_prep", "configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                name = str(path.relative_to(ROOT))
                assert name.removeprefix("video_iresnet/") in found or f"root/{name}" in found


@pytest.mark.slow
def test_the_installed_command_lists_and_starts_every_script(installed: Run) -> None:
    """Each one imports the installed package, and no folder of modules is on the path."""
    text = installed("video-iresnet", "--help").stdout
    assert all(f"  {path.stem} " in text for path in SCRIPTS)
    code = """
import contextlib, io, sys
from video_iresnet.__main__ import main
from video_iresnet.runtime.root import PACKAGE, scripts
for name in scripts():
    sys.argv, text = ["video-iresnet", name, "--help"], io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            main()
        except SystemExit as end:
            assert end.code == 0, name
    assert f"usage: {name}.py" in text.getvalue(), name
    assert str(PACKAGE) not in sys.path
print("fine")
"""
    assert installed("python", "-c", code).stdout == "fine\n"


@pytest.mark.slow
def test_a_run_of_the_installed_package(installed: Run, shapes: Path, tmp_path: Path) -> None:
    """With a config of the package, in two processes; then the command that folders.py prints."""
    changes = f"NUM_GPUS 2 SOLVER.MAX_EPOCH 1 SOLVER.WARMUP_EPOCHS 0 OUTPUT_DIR {tmp_path}".split()
    overrides = [*small_overrides(shapes), *changes]
    installed("video-iresnet", "run_net", "--cfg", "configs/demo/iR3D18.yaml", *overrides)
    log = (tmp_path / "stdout.log").read_text()
    assert "2 process(es)" in log
    assert (tmp_path / "results.json").exists()
    assert "code 0" in log  # the version, from the metadata of the wheel
    for number in range(6):
        path = tmp_path / f"raw/{'ab'[number % 2]}/{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(shapes / "videos" / sorted(os.listdir(shapes / "videos"))[number])
    prepared = installed(
        "video-iresnet", "folders", "--videos", str(tmp_path / "raw"), "--out", str(tmp_path / "lists")
    )
    assert "-m video_iresnet run_net --cfg configs/own/iR3D18.yaml " in prepared.stdout.splitlines()[-1]
