"""The entry points of torch.hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, RunNet, load_script

from video_iresnet.inference import Classifier

REPOSITORY = {"repo_or_dir": str(ROOT), "source": "local"}


def test_every_published_depth_has_a_name() -> None:
    """By torch.hub.list's rule for names, which lists repositories of GitHub alone."""
    module = load_script("hubconf.py")
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    assert {"load", "ir3d_18", "ir3d_404", "r3d_101", "rs3d_50", "rg3d_152", "irgf3d_50"} <= set(names)
    assert not {"rg3d_18", "rg3d_200"} & set(names)
    assert {name.split("_")[0] for name in names} == {
        *("load", "r3d", "rs3d", "ir3d", "rg3d", "rgf3d", "irg3d", "irgf3d")
    }  # nothing that hubconf.py merely imports
    assert module.ir3d_50.__doc__.startswith("3D iresnet-50")


def test_a_name_is_its_network() -> None:
    """Parameters as in MODEL_ZOO.md."""
    with torch.device("meta"):
        network = torch.hub.load(**REPOSITORY, model="ir3d_50")
    assert sum(parameter.numel() for parameter in network.parameters()) == 46_999_760
    small = torch.hub.load(**REPOSITORY, model="rg3d_50", num_classes=3, width=8, temporal_kernels="slow")
    assert small.eval()(torch.zeros(2, 3, 4, 32, 32)).shape == (2, 3)


def test_a_trained_checkpoint(shapes: Path, small: list[str], tmp_path: Path, run_net: RunNet) -> None:
    changes = ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "TEST.ENABLE", "False"]
    assert run_net(*small, *changes, "OUTPUT_DIR", str(tmp_path)) == 0
    classifier = torch.hub.load(**REPOSITORY, model="load", checkpoint=str(tmp_path), device="cpu")
    assert isinstance(classifier, Classifier)
    guesses = classifier(str(min((shapes / "videos").iterdir()))).top(8)
    assert sum(guess.probability for guess in guesses) == pytest.approx(1, abs=1e-5)


def test_networks_need_torch_alone() -> None:
    code = """
import sys
for name in ("av", "fvcore", "iopath", "yacs"):
    sys.modules[name] = None
import torch
print(type(torch.hub.load(sys.argv[1], "r3d_18", source="local", width=4)).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, ROOT], capture_output=True, text=True, check=False
    )
    assert done.stdout == "ResNet\n", done.stderr
