"""How many frames a second extracted frames have: a file beside their folders, whatever lists name them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from ..runtime.storage import atomic_write, path_manager, read_lines
from .records import Record

FILE_NAME = "frame_rates.json"
EXPECTED = 'expected {"folder": frames a second} for the folders beside it, or one number for all of them'


def with_frame_rates(records: Iterable[Record], *, needed: bool) -> list[Record]:
    """The records, those of folders of frames with the rates that are written beside the folders.

    `needed`: raise InputError where the rate of a folder is not known. Also raises it for a file of another
    form. The lists themselves keep the forms of PySlowFast and TSM, which have no room for a rate.
    """
    files: dict[str, Mapping[str, float] | float] = {}
    found = []
    for record in records:
        if record.num_frames:
            where = os.path.dirname(record.path % record.first_frame)
            parent, folder = os.path.split(where)
            path = os.path.join(parent, FILE_NAME)
            if path not in files:
                files[path] = read_frame_rates(path) if path_manager.exists(path) else {}
            rates = files[path]
            fps = rates.get(folder, 0.0) if isinstance(rates, Mapping) else rates
            if needed and not fps:
                raise InputError(
                    f"DATA.TARGET_FPS needs the frame rate of {where}, which is not known; write it into "
                    f'{path}, as {{"{folder}": 12}} or as 12 for all folders, or set DATA.TARGET_FPS 0'
                )
            record = record._replace(fps=fps)
        found.append(record)
    return found


def read_frame_rates(path: str) -> Mapping[str, float] | float:
    """Folder -> frames a second, or one number for all folders. Raises InputError."""
    try:
        content = json.loads("\n".join(read_lines(path)))
        if not isinstance(content, dict):
            return _rate(content)
        return {folder: _rate(fps) for folder, fps in content.items()}
    except (ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} does not hold frame rates; {EXPECTED}") from error


def write_frame_rates(path: Path, rates: Mapping[str, float]) -> None:
    """Write the rates down beside those that are there. Raises InputError where these are others."""
    known = read_frame_rates(str(path)) if path.exists() else {}
    for folder, fps in rates.items():
        there = known.get(folder, fps) if isinstance(known, Mapping) else known
        if not math.isclose(there, fps, rel_tol=1e-3):
            raise InputError(
                f"{path} says that {folder} has {there:g} frames a second, but its video has {fps:g}; "
                "correct it, or extract into another folder"
            )
    if isinstance(known, Mapping) and not rates.keys() <= known.keys():
        with atomic_write(path) as file:
            json.dump({**rates, **known}, file, indent=0, sort_keys=True)
            file.write("\n")


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no frame rate")
    return float(value)
