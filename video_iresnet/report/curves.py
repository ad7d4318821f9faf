"""The curves of a training, from its json_stats.log."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..runtime.storage import open_text

POINTS = 400  # of a curve; longer ones are averaged
START = "json_stats: "

Curve: TypeAlias = tuple[list[float], list[float]]
"""Epochs, and values there."""


def read_curves(path: Path) -> dict[str, Curve]:
    """Return the curves of a json_stats.log as (epochs, values), by the kind of record and the value, such as
    `val_epoch top1_err`; none without the file. Where a training went on from a checkpoint, the later record
    of a step counts; lines that were cut off are left out. Raises InputError if the file cannot be read.
    """
    points: dict[str, dict[float, float]] = {}
    for record in _records(path):
        kind, epoch = str(record.get("_type", "")).rstrip("_"), _epoch(record)
        for name, value in record.items():
            if epoch is not None and isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(f"{kind} {name}", {})[epoch] = value
    return {name: _shortened(sorted(values.items())) for name, values in points.items()}


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with open_text(str(path)) as file:
        for line in file:
            try:
                record = json.loads(line.removeprefix(START))
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield record


def _epoch(record: dict[str, Any]) -> float | None:
    """Return how many epochs were done at a record: epoch 3/11 is 3, and its step 8/32 is 2.25."""
    try:
        epoch = int(str(record["epoch"]).split("/")[0])
        step, steps = (int(number) for number in str(record.get("iter", "1/1")).split("/"))
        return epoch - 1 + step / steps
    except (KeyError, ValueError, ZeroDivisionError):
        return None


def _shortened(points: list[tuple[float, float]]) -> Curve:
    """Return the means over parts of equal numbers of points."""
    size = -(-len(points) // POINTS)
    means = [np.mean(points[i : i + size], axis=0).tolist() for i in range(0, len(points), size)]
    return [epoch for epoch, _ in means], [value for _, value in means]
