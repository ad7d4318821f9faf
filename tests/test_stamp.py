"""The stamp of a run: what it says of code and machine, and where it is kept."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import av
import pytest
import torch
import torchvision
from conftest import ROOT, RunNet

from video_iresnet import build, folder
from video_iresnet.config import load_config
from video_iresnet.engine.checkpoint import load_checkpoint
from video_iresnet.engine.views import ViewStore, weights_hash
from video_iresnet.runtime.environment import code_version, environment
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.seeding import Stream, integer_seed
from video_iresnet.runtime.stamp import add_stamp, difference, lines, read_stamps

PERSON = ["-c", "user.name=A", "-c", "user.email=a@example.org"]


def git(folder: Path, *arguments: str) -> str:
    return subprocess.check_output(["git", "-C", str(folder), *arguments], text=True).strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a repository of its own, with one commit."""
    path = tmp_path / "clone/some_package"
    path.mkdir(parents=True)
    (path / "__init__.py").write_text("a = 1\n")
    (tmp_path / "clone/README").touch()
    git(tmp_path / "clone", "init", "-q")
    git(tmp_path / "clone", "add", "-A")
    git(tmp_path / "clone", *PERSON, "commit", "-qm", "first")
    return path


def test_the_commit_of_the_code(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(package, "rev-parse", "HEAD")[:12]
    version = code_version.__wrapped__
    assert version(package) == f"unknown, commit {commit}"
    (package / "notes.txt").touch()
    assert version(package) == f"unknown, commit {commit}"
    (package.parent / "README").write_text("changed")
    assert version(package) == f"unknown, commit {commit}+changes"
    for name in ("GIT_DIR", "GIT_WORK_TREE"):  # as in a hook of another repository
        monkeypatch.setenv(name, str(ROOT))
    assert version(package) == f"unknown, commit {commit}+changes"


def test_no_commit_of_another_repository(package: Path, tmp_path: Path) -> None:
    installed = package.parent / ".venv/some_package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    (tmp_path / "outside").mkdir()
    for path in (installed, tmp_path / "outside"):
        assert code_version.__wrapped__(path) == "unknown, commit unknown"


def test_without_git(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(package))
    assert code_version.__wrapped__(package) == "unknown, commit unknown"


def test_the_environment_is_that_of_this_machine() -> None:
    found = environment(["B", "A", "B"])
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*, commit (unknown|[0-9a-f]{12}(\+changes)?)", str(found["code"]))
    assert found["python"] == ".".join(map(str, os.sys.version_info[:3]))
    assert found["torch"] == torch.__version__
    assert torchvision.__version__.startswith(str(found["torchvision"]))
    assert found["cuda"] == (torch.version.cuda or "none")
    assert found["pyav"] == av.__version__
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    assert str(found["ffmpeg"]).startswith(f"libavcodec {codec}, libavformat ")
    assert (found["devices"], found["processes"]) == ("A, B", 3)
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert str(found["os"]).startswith(f"{platform.system()}-{platform.release()}")
    assert len(str(found["cpu"])) > 2


THEN = {"torch": "2.13.0", "processes": 1, "config": "ab", "train_list": "24 records"}


def test_what_differs_is_said_in_words() -> None:
    now = {"torch": "2.14.1", "processes": 2, "config": "ab", "initial_weights": "cd"}
    assert difference(THEN, now) == "torch 2.14.1, was 2.13.0; processes 2, was 1"
    assert difference(THEN, THEN) == ""
    assert lines(now) == ["torch 2.14.1", "processes 2", "config ab, initial weights cd"]


def test_a_stamp_is_appended_where_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "stamp.json"
    stamps = [THEN, {**THEN, "torch": "2.14.1"}, {**THEN, "torch": "2.14.1", "new": 1}]
    for stamp in [stamps[0], stamps[0], stamps[1], {"torch": "2.14.1"}, stamps[2]]:
        add_stamp(path, stamp)
    written = read_stamps(path)
    assert [{**stamp, "since": ""} for stamp in written] == [{**stamp, "since": ""} for stamp in stamps]
    assert all(re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d[+-]", str(stamp["since"])) for stamp in written)
    for text in ("[", '{"torch": "2.13.0"}', "[1]"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"stamp.json is no .*; move it away$"):
            add_stamp(path, THEN)


def test_a_run_and_what_it_writes_carry_the_stamp(
    small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fingerprints are those of the files; a resumed run says what changed."""
    run = [*small, "OUTPUT_DIR", str(tmp_path), "SOLVER.WARMUP_EPOCHS", "0"]
    assert run_net(*run, "SOLVER.MAX_EPOCH", "1") == 0
    (first,) = read_stamps(tmp_path / "stamp.json")
    log = (tmp_path / "stdout.log").read_text()
    assert all(log.count(line) == 1 for line in lines(first))
    assert "resumed with" not in log
    config = (tmp_path / "config.yaml").read_bytes()
    assert first["config"] == hashlib.sha256(config).hexdigest()[:16]
    cfg = load_config(str(tmp_path / "config.yaml"))
    torch.manual_seed(integer_seed(cfg.RNG_SEED, Stream.WEIGHTS))
    assert first["initial_weights"] == weights_hash(build.build_model(cfg).state_dict())[:16]
    records = build.build_records(cfg, "DATA.TRAIN_LIST")
    assert first["train_list"] == records.fingerprint()
    state = load_checkpoint(tmp_path / "checkpoints/checkpoint_epoch_00001.pyth")
    assert {"since": first["since"], **state["stamp"]} == first

    found = json.loads((tmp_path / "results.json").read_text())["stamp"]
    assert found["weights"] == weights_hash(state["model_state"])[:16]
    assert found["test_list"] == build.build_records(cfg, "DATA.TEST_LIST").fingerprint()
    assert {name: first[name] for name in ("code", "torch", "pyav", "devices")}.items() <= found.items()
    assert not {"processes", "cores", "config", "since"} & found.keys()
    (views,) = (tmp_path / "views").iterdir()
    assert str(ViewStore.open(views).about["weights"]).startswith(found["weights"])

    other = lambda devices: {**environment(devices), "torch": "3.0", "cores": 99}  # noqa: E731
    monkeypatch.setattr(folder, "environment", other)
    assert run_net(*run, "SOLVER.MAX_EPOCH", "2") == 0
    last = read_stamps(tmp_path / "stamp.json")[-1]
    assert len(read_stamps(tmp_path / "stamp.json")) == 2
    assert last["initial_weights"] == first["initial_weights"]
    resumed = (
        f"resumed with torch 3.0, was {torch.__version__}; cores 99, was {first['cores']}; "
        f"config {last['config']}, was {first['config']}\n"
    )
    assert run_net(*run, "SOLVER.MAX_EPOCH", "2") == 0
    assert (tmp_path / "stdout.log").read_text().count(resumed) == 1
    assert len(read_stamps(tmp_path / "stamp.json")) == 2
