"""The rules of ARCHITECTURE.md that a machine can check."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "video_iresnet"
# Each layer may import those on the right of it.
ALLOWED = {
    "config": {"models", "runtime"},
    "run": {"config", "build", "engine", "data", "models", "runtime"},
    "build": {"config", "engine", "data", "models", "runtime"},
    "engine": {"data", "models", "runtime"},
    "data": {"runtime"},
    "models": set(),
    "runtime": set(),
}


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(path: Path) -> set[str]:
    """The layers of the package that a file imports."""
    package = ["video_iresnet", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            modules = (
                [[*base, *node.module.split(".")]]
                if node.module
                else [[*base, alias.name] for alias in node.names]
            )
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module.split(".")] if node.module else []
        elif isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        else:
            continue
        found |= {module[1] for module in modules if module[0] == "video_iresnet" and len(module) > 1}
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_run_one_way(path: Path) -> None:
    if path.parent == PACKAGE and path.name == "__init__.py":
        assert not imported_layers(path)
    else:
        assert imported_layers(path) <= ALLOWED[layer(path)] | {layer(path)}


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


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is in the standard library from 3.11 on")
def test_requirements_agree() -> None:
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line]
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert listed[-1] == "-e ."
    assert listed[:-1] == project["dependencies"]
