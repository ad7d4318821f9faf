"""The rules of ARCHITECTURE.md that a machine can check."""

from __future__ import annotations

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "video_iresnet"
SCRIPTS = (ROOT / "tools", ROOT / "data_prep")
# Each layer may import those on the right of it; config is for tools, run and build alone.
ALLOWED = {
    "tools": {
        "config",
        "changes",
        "check",
        "doctor",
        "speed",
        "run",
        "inference",
        "prep",
        "build",
        "report",
        "engine",
        "data",
        "models",
        "runtime",
    },
    "__main__": {"runtime"},
    "data_prep": {"run", "prep", "build", "report", "engine", "data", "models", "runtime"},
    "config": {"slowfast", "models", "runtime"},
    "slowfast": {"models", "runtime"},
    "changes": {"config", "runtime"},
    "folder": {"config", "changes", "build", "engine", "data", "models", "runtime"},
    "run": {"folder", "config", "changes", "build", "report", "engine", "data", "models", "runtime"},
    "speed": {"config", "build", "engine", "data", "models", "runtime"},
    "doctor": {"engine", "data", "models", "runtime"},
    "check": {"config", "speed", "report", "build", "engine", "data", "models", "runtime"},
    "inference": {"config", "changes", "build", "report", "engine", "data", "models", "runtime"},
    "prep": {"data", "runtime"},
    "build": {"config", "report", "engine", "data", "models", "runtime"},
    "report": {"engine", "data", "models", "runtime"},
    "engine": {"data", "models", "runtime"},
    "data": {"runtime"},
    "models": set(),
    "runtime": set(),
}


SOURCES = sorted(path for folder in (PACKAGE, *SCRIPTS) for path in folder.rglob("*.py"))


def layer(path: Path) -> str:
    folder = path.relative_to(ROOT).parts[0]
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py") if folder == PACKAGE.name else folder


def imports(source: str, package: list[str]) -> Iterator[list[str]]:
    """All that the source of a module of `package` imports, anywhere in it, as parts of a dotted name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + node.module.split(".") if node.module else base
            yield from ([*base, alias.name] for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)


def imported_layers(source: str, package: list[str]) -> set[str]:
    found = set()
    for module in imports(source, package):
        assert module[0] not in ALLOWED, "scripts are not modules"
        if module[0] == PACKAGE.name and len(module) > 1:
            found.add(module[1])
    return found


def check_no_circle(folder: Path) -> None:
    """Raise CycleError, which names the circle, where modules of a package import each other."""
    graph = {}
    names = {
        tuple(
            part for part in path.relative_to(folder.parent).with_suffix("").parts if part != "__init__"
        ): path
        for path in folder.rglob("*.py")
    }
    for name, path in names.items():
        package = list(path.relative_to(folder.parent).parts[:-1])
        found = [tuple(module) for module in imports(path.read_text(), package)]
        graph[name] = {module if module in names else module[:-1] for module in found} & names.keys()
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    imported = imported_layers(path.read_text(), list(path.relative_to(ROOT).parts[:-1]))
    if path == PACKAGE / "__init__.py":
        assert not imported
    else:
        assert imported <= ALLOWED[layer(path)] | {layer(path)}


@pytest.mark.parametrize(
    "source",
    [
        "from video_iresnet import config",
        "from video_iresnet.config import load_config",
        "import torch, video_iresnet.config",
        "def main():\n    import video_iresnet.config as config",
        "from .. import config",
        "from ..config import Config",
    ],
)
def test_every_form_of_import_is_seen(source: str) -> None:
    assert imported_layers(source, ["video_iresnet", "engine"]) == {"config"}


def test_no_circle_of_imports() -> None:
    """Neither at the top of a module nor in its functions."""
    check_no_circle(PACKAGE)


@pytest.mark.parametrize("last", ["from . import a", "def f():\n    from .a import x", "import p.q.a"])
def test_every_circle_is_seen(tmp_path: Path, last: str) -> None:
    (tmp_path / "p/q").mkdir(parents=True)
    for name, source in (("__init__", ""), ("a", "from .b import y"), ("b", "from .c import z"), ("c", last)):
        (tmp_path / f"p/q/{name}.py").write_text(source)
    with pytest.raises(graphlib.CycleError):
        check_no_circle(tmp_path / "p")
    (tmp_path / "p/q/c.py").write_text("import torch")
    check_no_circle(tmp_path / "p")


def test_architecture_shows_every_file() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    names = {path.name for path in SOURCES} - {"__init__.py"}
    assert not {name for name in names if not re.search(rf"(?<!\w){re.escape(name)}", page)}


def test_models_import_torch_alone() -> None:
    """At the top of a file; safetensors is imported where such a file is read."""
    for path in (PACKAGE / "models").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                assert name.split(".")[0] in {"torch", *sys.stdlib_module_names}, path


def test_models_work_copied_into_an_empty_folder(tmp_path: Path) -> None:
    """There, nothing that torch itself does not import is imported, and what needs safetensors says so."""
    shutil.copytree(PACKAGE / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "a.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    code = """
import sys, torch
before = set(sys.modules)
sys.modules["safetensors"] = None
from models import WeightsError, create_model, load_weights
new = {name.split(".")[0] for name in set(sys.modules) - before} - {"models", "safetensors"}
assert new <= set(sys.stdlib_module_names), new
new_torch = [name for name in set(sys.modules) - before if name.startswith("torch.")]
assert not new_torch, "a part of torch that it does not import itself"
net = create_model("iresnet", 18, width=4, num_classes=3)
assert net.eval()(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 3)
torch.save(net.state_dict(), "w.pth")
assert load_weights(net, "w.pth").complete
try:
    load_weights(net, "a.safetensors")
except WeightsError as error:
    assert "pip install safetensors" in str(error)
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.parametrize(
    ("module", "slow"),
    [("prep.jobs", "torch"), ("run", "torch._dynamo"), ("inference.predictor", "torch._dynamo")],
)
def test_processes_start_without_what_few_of_them_need(module: str, slow: str) -> None:
    """Importing torch takes seconds; torch._dynamo, which torchvision imports, takes as long again."""
    code = f"import sys, video_iresnet.{module}; print({slow!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is in the standard library from 3.11 on")
def test_requirements_agree() -> None:
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line]
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert listed[-1] == "-e ."
    assert listed[:-1] == project["dependencies"]
