"""What needs a package of an extra says so in one line, where the package is missing."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from video_iresnet.data.decode import load_backend
from video_iresnet.engine.average_precision import load_average_precision
from video_iresnet.inference.export import export_onnx
from video_iresnet.inference.page import import_gradio
from video_iresnet.inference.trained import Trained
from video_iresnet.prep.jobs import run_jobs
from video_iresnet.prep.quality import structural_similarity
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.ranges import open_range
from video_iresnet.runtime.slurm import Resources, ScriptTask, submit
from video_iresnet.runtime.weights_and_biases import sent_records


def square(number: int) -> int:
    return number**2


# extra: (the module that is missing, what needs it)
EXTRAS: dict[str, tuple[str, Callable[[], object]]] = {
    "gs": ("gcsfs.retry", lambda: open_range("gs://bucket/key")),
    "hub": ("huggingface_hub", lambda: importlib.import_module("video_iresnet.inference.hub")),
    "labels": ("sklearn.metrics", load_average_precision),
    "onnx": ("onnxruntime", lambda: export_onnx(Trained.__new__(Trained))),
    "prep": ("skimage.metrics", structural_similarity),
    "ray": (
        "ray",
        lambda: list(run_jobs(square, [1], workers=1, ray_address="auto", description="")),
    ),
    "submitit": ("submitit", lambda: submit(ScriptTask("a", []), Path("."), Resources())),
    "s3": ("s3fs.core", lambda: open_range("s3://bucket/key")),
    "serve": ("gradio", lambda: import_gradio(Path("."))),
    "torchcodec": ("torchcodec", lambda: load_backend("torchcodec")),
    "wandb": ("wandb", lambda: sent_records("p", Path("."), {}).__enter__()),
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_package_names_its_extra(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, use = EXTRAS[extra]
    monkeypatch.setattr("os.environ", os.environ.copy())
    monkeypatch.setattr(os, "environ", dict(os.environ))  # which Gradio's import changes
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("data.decode.torchcodec", "inference.hub"):
        monkeypatch.delitem(sys.modules, f"video_iresnet.{name}", raising=False)
    with pytest.raises(InputError) as caught:
        use()
    line = rf".+ needs a package that cannot be loaded \(.+\); pip install 'video_iresnet\[{extra}\]'(, .+)?"
    assert re.fullmatch(line, str(caught.value))


def test_every_extra_that_code_names_is_tested() -> None:
    used = set()
    for path in (ROOT / "video_iresnet").rglob("*.py"):
        used |= set(re.findall(r'missing_extra\(\s*"[^"]+",\s*"(\w+)"', path.read_text()))
    assert used == set(EXTRAS)
    defined = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    assert used <= set(re.findall(r"^(\w+) = \[", defined, re.MULTILINE))
