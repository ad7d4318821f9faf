"""The files and the table of a test."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejson
from tabulate import tabulate

from ..data.labels import Label
from ..engine.aggregate import TOP, Numbers, Outcome, Prediction, Predictions, stack
from ..runtime.errors import InputError, reason
from ..runtime.storage import atomic_write, open_text

ACCURACIES = ("top1_acc", "top5_acc", "top1_acc_readable", "top5_acc_readable")
PRECISIONS = ("map", "map_readable", "map_chance")


class TestedVideos(NamedTuple):
    """What predictions.csv holds of N videos; `errors`: why a video failed, or empty. `labels`: (N,) classes,
    or tuples of them where videos have many.
    """

    names: list[str]
    labels: Numbers
    predictions: Predictions
    errors: list[str]


def metrics(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys of results.json that say how accurate a test is, and what they are called."""
    if "map" in results:
        return {"map": "mAP"}
    return {"top1_acc": "top-1", "top5_acc": f"top-{min(TOP, results['num_classes'])}"}


def write_results(path: Path, results: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        simplejson.dump(results, file, indent=2)
        file.write("\n")


def write_predictions(path: Path, outcome: Outcome, predictions: Predictions) -> None:
    """video, label (or labels, such as 3,17,42), the classes and probabilities of the top five, and why a
    video failed.
    """
    ranks = range(1, min(TOP, predictions.classes.shape[1]) + 1)
    many = outcome.labels.ndim == 2
    labels = [",".join(map(str, np.flatnonzero(row))) for row in outcome.labels] if many else outcome.labels
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["video", "labels" if many else "label", *(f"top{rank}" for rank in ranks),
             *(f"prob{rank}" for rank in ranks), "error"]
        )  # fmt: skip
        best, values = (array[:, :TOP].tolist() for array in predictions)
        rows = zip(outcome.names, labels, best, values, outcome.errors, strict=True)
        for name, label, classes, probabilities, error in rows:
            cells = [*classes, *(f"{probability:.6f}" for probability in probabilities)]
            writer.writerow([name, label, *([""] * len(cells) if error else cells), error])


def read_predictions(path: Path) -> TestedVideos:
    """Read predictions.csv. Raises InputError."""
    names, labels, errors = [], list[Label](), []
    predictions: list[Prediction | None] = []
    with open_text(str(path)) as file:
        rows = csv.DictReader(file)
        try:
            for row in rows:
                names.append(row["video"])
                labels.append(_label(row))
                errors.append(row["error"] or "")
                ranks = [rank for rank in range(1, TOP + 1) if f"top{rank}" in row]
                classes = [row[f"top{rank}"] for rank in ranks]
                values = [row[f"prob{rank}"] for rank in ranks]
                found = Prediction(np.array(classes, int), np.array(values, float)) if classes[0] else None
                predictions.append(found)
        except (KeyError, IndexError, TypeError, ValueError, csv.Error) as error:
            raise InputError(
                f"{path} is no predictions.csv of a test (line {rows.line_num}: {reason(error)}); run the "
                "test again"
            ) from error
    if any(isinstance(label, tuple) for label in labels):
        known = np.empty(len(labels), object)
        known[:] = labels
        return TestedVideos(names, known, stack(predictions), errors)
    return TestedVideos(names, np.array(labels, int), stack(predictions), errors)


def _label(row: Mapping[str, str]) -> Label:
    if "labels" in row:
        return tuple(int(number) for number in row["labels"].split(",") if number)
    return int(row["label"])


def read_results(path: Path) -> dict[str, Any]:
    """Read results.json; empty if there is none. What an older version did not write is empty. Raises
    InputError.
    """
    if not path.exists():
        return {}
    with open_text(str(path)) as file:
        try:
            return _checked(json.load(file))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{path} is no results.json of a test ({reason(error)}); run the test again"
            ) from error


def _checked(results: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of results.json with the numbers that are read from there; any error means that a
    test did not write them.
    """
    found: dict[str, Any] = {name: int(results[name]) for name in ("num_videos", "num_failed", "num_classes")}
    accuracies = metrics(results)
    found |= {name: float(results[name]) for name in (PRECISIONS if "map" in accuracies else ACCURACIES)}
    if "map" in accuracies:
        by_class = [None if value is None else float(value) for value in results["average_precision"]]
        if len(by_class) != found["num_classes"]:
            raise ValueError(f"an average precision of {len(by_class)} classes")
        found["average_precision"] = by_class
    for name in accuracies:
        interval = [float(end) for end in results.get(f"{name}_interval") or ()]
        if len(interval) not in (0, 2):
            raise ValueError(f"{name}_interval of {len(interval)} numbers")
        found[f"{name}_interval"] = interval
    tables = {key: results[key] for key in ("by_views", "temporal_checks")}
    tables["by_number_of_clips"] = results.get("by_number_of_clips", {})
    for key, measurements in tables.items():
        found[key] = {
            name: {accuracy: float(measured[accuracy]) for accuracy in accuracies}
            for name, measured in measurements.items()
        }
    for name in [*found["by_views"], *found["by_number_of_clips"]]:
        clips_and_crops(name)
    names = [str(name) for name in results.get("class_names") or []]
    if len(names) not in (0, found["num_classes"]) or found["num_classes"] < 1:
        raise ValueError(f"{len(names)} class names for {found['num_classes']} classes")
    return {**results, **found, "class_names": names}


def clips_and_crops(protocol: str) -> tuple[int, int]:
    """10x3 -> (10, 3). Raises ValueError."""
    clips, crops = (int(number) for number in protocol.split("x"))
    if clips < 1 or crops < 1:
        raise ValueError(f"a protocol {protocol}")
    return clips, crops


def table(results: dict[str, Any]) -> str:
    """The accuracies of results.json."""
    keys = metrics(results)
    rows = [(f"{name} views", *(value[key] for key in keys)) for name, value in results["by_views"].items()]
    rows += [
        (f"frames {name}", *(value[key] for key in keys))
        for name, value in results["temporal_checks"].items()
    ]
    if results["num_failed"]:
        rows.append(("without failed videos", *(results[f"{key}_readable"] for key in keys)))
    head = f"{results['num_videos']} videos, {results['num_failed']} failed; chance {chance(results):.2f}"
    accuracies = tabulate(rows, headers=["accuracy in percent", *keys.values()], floatfmt=".2f")
    if "map" in keys:
        return f"{head}\n{accuracies}"
    low, high = results["top1_acc_interval"]
    return f"{head}\n{accuracies}\n95 % interval of top-1: {low:.2f} to {high:.2f}"


def chance(results: Mapping[str, Any]) -> float:
    """Return the top-1 accuracy, or the mean average precision, of random scores on average."""
    return float(results["map_chance"]) if "map" in results else 100 / int(results["num_classes"])
