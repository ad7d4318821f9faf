"""The reproducibility stamp of a run: its environment, and fingerprints of config, training list and initial
weights. All stamps of an OUTPUT_DIR are in its stamp.json, in order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from .errors import InputError, reason
from .storage import atomic_write, open_text

Stamp: TypeAlias = Mapping[str, str | int]
# The lines of a log that show a stamp; each value follows its name.
LINES = (
    ("code", "python", "torch", "torchvision", "cuda", "cudnn"),
    ("devices", "processes", "cpu", "cores", "os"),
    ("pyav", "ffmpeg"),
    ("config", "train_list", "initial_weights"),
)
# What results of a test may depend on. They do not depend on the number of processes or cores, nor, after
# training, on the training's config and list.
OF_RESULTS = ("code", "python", "torch", "torchvision", "cuda", "cudnn", "pyav", "ffmpeg", "devices")


def lines(stamp: Stamp) -> list[str]:
    """Return a stamp as a few lines of text."""
    return [
        ", ".join(f"{_words(name)} {stamp[name]}" for name in names if name in stamp)
        for names in LINES
        if any(name in stamp for name in names)
    ]


def difference(then: Stamp, now: Stamp) -> str:
    """Return how a stamp differs from an earlier one, in words; values that one lacks are left out."""
    return "; ".join(
        f"{_words(name)} {value}, was {then[name]}"
        for name, value in now.items()
        if name in then and then[name] != value
    )


def read_stamps(path: Path) -> list[dict[str, str | int]]:
    """Return the stamps in a file, oldest first; none if it does not exist. Raises InputError."""
    if not path.exists():
        return []
    with open_text(str(path)) as file:
        try:
            stamps = json.load(file)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no JSON ({reason(error)}); move it away") from error
    if not isinstance(stamps, list) or not all(isinstance(stamp, dict) for stamp in stamps):
        raise InputError(f"{path} is no list of stamps; move it away")
    return stamps


def add_stamp(path: Path, stamp: Stamp) -> None:
    """Append a stamp with the time, unless the last one in the file says the same. Raises InputError."""
    stamps = read_stamps(path)
    if stamps and all(stamps[-1].get(name) == value for name, value in stamp.items()):
        return
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    with atomic_write(path) as file:
        json.dump([*stamps, {"since": now, **stamp}], file, indent=2)
        file.write("\n")


def _words(name: str) -> str:
    return name.replace("_", " ")
