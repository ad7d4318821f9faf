"""The machine that a process runs on, and the software that runs there."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

import av
import torch

from .cores import processor, usable_cores
from .root import PACKAGE

# The libraries of FFmpeg that decide what is decoded.
DECODING = ("libavcodec", "libavformat", "libswscale")
LONGEST_GIT = 20.0  # seconds, for a large repository on a slow disk


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


@functools.cache  # the code that runs is that of the start, whatever is edited meanwhile
def code_version(package: Path = PACKAGE) -> str:
    """Return the version of the installed package and the git commit of its files, with "+changes" where a
    tracked file differs, or else "unknown".
    """
    try:
        version = metadata.version(package.name)
    except metadata.PackageNotFoundError:
        version = "unknown"
    return f"{version}, commit {_commit(package)}"


def _commit(package: Path) -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments],
            # A hook of git that starts a run sets variables that name its repository.
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
            | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            check=True,
            timeout=LONGEST_GIT,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails in a .venv within another repository
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def environment(devices: Collection[str]) -> dict[str, str | int]:
    """Return what numbers may depend on besides config, data and weights. `devices`: the name of the device
    of each process.
    """
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": metadata.version("torchvision"),
        "cuda": torch.version.cuda or "none",
        "cudnn": str(torch.backends.cudnn.version() or "none"),  # type: ignore[no-untyped-call]
        "pyav": metadata.version("av"),
        "ffmpeg": ", ".join(f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in DECODING),
        "devices": ", ".join(sorted(set(devices))),
        "processes": len(devices),
        "cpu": processor(),
        "cores": usable_cores(),
        "os": platform.platform(),
    }
