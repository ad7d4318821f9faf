"""What needs a package of an extra says so in one line, where the package is missing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from video_iresnet.data.decode import load_backend
from video_iresnet.inference.page import import_gradio
from video_iresnet.prep.jobs import run_jobs
from video_iresnet.prep.quality import structural_similarity
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.weights_and_biases import sent_records


def square(number: int) -> int:
    return number**2


# extra: (the module that is missing, what needs it)
EXTRAS: dict[str, tuple[str, Callable[[], object]]] = {
    "prep": ("skimage.metrics", structural_similarity),
    "ray": (
        "ray",
        lambda: list(run_jobs(square, [1], workers=1, ray_address="auto", description="")),
    ),
    "serve": ("gradio", lambda: import_gradio(Path("."))),
    "torchcodec": ("torchcodec", lambda: load_backend("torchcodec")),
    "wandb": ("wandb", lambda: sent_records("p", Path("."), {}).__enter__()),
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_package_names_its_extra(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, use = EXTRAS[extra]
    monkeypatch.setattr("os.environ", os.environ.copy())
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "video_iresnet.data.decode.torchcodec", raising=False)
    with pytest.raises(InputError) as caught:
        use()
    line = rf".+ needs a package that cannot be loaded \(.+\); pip install 'video_iresnet\[{extra}\]'(, .+)?"
    assert re.fullmatch(line, str(caught.value))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is in the standard library from 3.11 on")
def test_every_extra_is_tested() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) - {"dev"} == set(EXTRAS)
