"""Every command in the documents is one that works here: its files exist, its options parse, its targets are
there.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, load_script

from video_iresnet.config import load_config

DOCUMENTS = ["README.md", "MODEL_ZOO.md", "CONTRIBUTING.md", "ARCHITECTURE.md"]


def commands() -> list[str]:
    """The lines of fenced `sh` blocks and the command lines that head the configs."""
    found = []
    for name in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
            found += [
                line.split("  #")[0].strip()
                for line in block.replace("\\\n", " ").splitlines()
                if line.strip()
            ]
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        found.append(path.read_text().splitlines()[0].removeprefix("# "))
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_command(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif "tools/run_net.py" in words:
        module = load_script("tools/run_net.py")
        paths, overrides = module.parse(words[words.index("tools/run_net.py") + 1 :])
        for path in paths:
            load_config(str(ROOT / path), overrides)
    elif words[0] == "python":
        assert (ROOT / words[1]).exists()
        text = (ROOT / words[1]).read_text()
        assert all(f'"{word}"' in text for word in words if word.startswith("--"))
    else:
        assert words[0] in {"git", "cd", "tensorboard"}


def test_documents_name_files_that_exist() -> None:
    for name in DOCUMENTS:
        for path in re.findall(
            r"`((?:video_iresnet|configs|data_prep|tools|tests)/[\w/.]+)`", (ROOT / name).read_text()
        ):
            assert (ROOT / path).exists(), f"{name}: {path}"


def test_documents_do_not_name_this_machine() -> None:
    for path in [*map(Path, DOCUMENTS), Path("CHANGELOG.md")]:
        assert not re.search(r"/(?:work|root|home)/", (ROOT / path).read_text())
