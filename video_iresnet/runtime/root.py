"""Where the scripts and configs are: beside the package in a clone, in its folder `root` in an installed
wheel. The folders in there are those of a clone, so that scripts find each other in the same way.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
IS_INSTALLED = (PACKAGE / "root").is_dir()  # from a wheel; an editable install is the clone itself
ROOT = PACKAGE / "root" if IS_INSTALLED else PACKAGE.parent


def scripts() -> dict[str, Path]:
    """Return {name: file} of tools/ and data_prep/."""
    folders = (ROOT / "tools", ROOT / "data_prep")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.py"))}


def script_words(script: str) -> list[str]:
    """Return what follows `python` or `torchrun` in a command that starts a script such as
    tools/run_net.py.
    """
    return ["-m", "video_iresnet", Path(script).stem] if IS_INSTALLED else [script]
