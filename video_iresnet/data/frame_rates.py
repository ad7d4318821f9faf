"""Frame rates of folders of extracted frames, stored in a file beside the folders."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from ..runtime.shards import beside
from ..runtime.storage import atomic_write, path_manager, read_lines
from .records import Record

FILE_NAME = "frame_rates.json"
EXPECTED = 'expected {"folder": frames a second} for the folders beside it, or one number for all of them'


def with_frame_rates(records: Iterable[Record], *, needed: bool) -> list[Record]:
    """Return the records, with the stored rate for folders of frames.

    Raises InputError if the file is malformed, or if `needed` and a rate is unknown. The rates have their own
    file because the list formats of PySlowFast and TSM have no place for them.
    """
    files: dict[str, Mapping[str, float] | float] = {}
    found = []
    for record in records:
        if record.num_frames:
            where = os.path.dirname(record.path % record.first_frame)
            parent, folder = os.path.split(where)
            path = beside(os.path.join(parent, FILE_NAME))
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
    """Return {folder: frames per second}, or one number for all folders. Raises InputError."""
    try:
        content = json.loads("\n".join(read_lines(path)))
        if not isinstance(content, dict):
            return _rate(content)
        return {folder: _rate(fps) for folder, fps in content.items()}
    except (ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} does not hold frame rates; {EXPECTED}") from error


def write_frame_rates(path: Path, rates: Mapping[str, float]) -> None:
    """Add rates to the stored ones. Raises InputError if a folder has another rate already."""
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
