"""What a page shows of a test: plain values for its template, from results.json and predictions.csv."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.labels import classes_of
from ..engine.aggregate import Numbers, per_class
from ..runtime.errors import InputError, printable
from . import plots
from .many_labels import false_alarms, precision_plot, precision_rows
from .mistakes import confused_pairs, confusion, row_fractions, worst_mistakes
from .plots import Line
from .results import TestedVideos, chance, clips_and_crops, metrics, read_predictions
from .strips import ReadStrip

ALL_CLASSES = 20  # so many are shown with names and numbers; of more, the extremes and a picture
EXTREMES = 20  # of the classes, at either end
PAIRS = 20  # of classes that are mixed up
MISTAKES = 12
FAILED = 500  # rows

Values = dict[str, Any]


def tested_parts(results: Mapping[str, Any], videos: TestedVideos, read_strip: ReadStrip) -> Values:
    """Return the values that the template of a run takes of a test."""
    names = class_names(results)
    if "map" in results:
        parts = _precisions(results, videos, names)
        worst = false_alarms(videos, MISTAKES)
    else:
        counts = confusion(videos, len(names))
        parts = _classes(videos, counts, names) | _confusion(counts, names)
        worst = [(i, 0) for i in worst_mistakes(videos, MISTAKES)]
    return (
        _accuracies(results)
        | parts
        | _mistakes(videos, worst, names, read_strip)
        | {"many_labels": "map" in results, "failed": [
            {"name": printable(videos.names[i]), "label": _label(videos, i, names), "error": printable(error)}
            for i, error in enumerate(videos.errors) if error
        ][:FAILED]}
    )  # fmt: skip


def read_test_videos(folder: Path, results: Mapping[str, Any]) -> TestedVideos:
    """Read the predictions.csv of a test with these results. Raises InputError where they do not fit each
    other.
    """
    videos = read_predictions(folder / "predictions.csv")
    labels = [number for label in videos.labels.tolist() for number in classes_of(label)]
    fits = 0 < len(videos.names) == results["num_videos"]
    fits = fits and ("map" in results) == (videos.labels.dtype == object)
    numbers = [*labels, *videos.predictions.classes[:, 0]]
    if not fits or max(numbers) >= results["num_classes"] or min(labels, default=0) < 0:
        raise InputError(
            f"{folder / 'predictions.csv'} has other videos or classes than results.json; run the test again"
        )
    return videos


def class_names(results: Mapping[str, Any]) -> list[str]:
    """Return the names of all classes with their numbers, which stand alone where the names are not known."""
    known = results["class_names"] or [""] * results["num_classes"]
    return [f"{number} {printable(name)}".strip() for number, name in enumerate(known)]


def view_lines(results: Mapping[str, Any], accuracy: str, name: str = "") -> list[Line]:
    """Return the accuracy by number of views as a line for each number of crops."""
    lines: dict[int, tuple[list[int], list[float]]] = {}
    for protocol, measured in results["by_number_of_clips"].items():
        clips, crops = clips_and_crops(protocol)
        x, y = lines.setdefault(crops, ([], []))
        x.append(clips * crops)
        y.append(measured[accuracy])
    return [Line(f"{name} {crops} crop{'s' * (crops > 1)}".strip(), x, y) for crops, (x, y) in lines.items()]


def _accuracies(results: Mapping[str, Any]) -> Values:
    size, by_clips = results["num_classes"], results["by_number_of_clips"]
    keys = metrics(results)
    first = next(iter(keys))
    checks = results["temporal_checks"]
    orders = {"own order": results, **checks} if checks else {}
    epoch, stamp = results.get("epoch"), results.get("stamp") or {}
    after = f"after {epoch + 1} epochs" if isinstance(epoch, int) else ""  # it is the last one, from 0 on
    weights = f"weights {stamp['weights']}" if "weights" in stamp else ""
    tested = [str(words) for words in (results.get("checkpoint"), after, weights) if words]
    return {
        "metrics": list(keys.values()),
        "num_classes": size,
        "chance": chance(results),
        "figures": [
            {
                "name": name,
                "value": results[key],
                "interval": results[f"{key}_interval"],
                "readable": results[f"{key}_readable"],
            }
            for key, name in keys.items()
        ],
        "num_videos": results["num_videos"],
        "num_failed": results["num_failed"],
        "protocol": printable(str(results.get("protocol"))),
        "tested": printable(", ".join(tested)),
        "view_rows": [
            _row(name, measured, keys) | {"views": math.prod(clips_and_crops(name))}
            for name, measured in (by_clips or results["by_views"]).items()
        ],
        "view_plots": [
            view_plot(key, name, view_lines(results, key)) for key, name in keys.items() if len(by_clips) > 1
        ],
        "check_rows": [
            _row(printable(name), measured, keys) | {"change": measured[first] - results[first]}
            for name, measured in orders.items()
        ],
    }


def view_plot(key: str, name: str, lines: Sequence[Line]) -> Values:
    """Return a plot of the accuracy by number of views, with a caption."""
    ends = ", ".join(f"{line.name}: {line.y[0]:.2f} to {line.y[-1]:.2f}" for line in lines)
    about = f"{name} accuracy in percent by number of views of a video. {ends}"
    element = plots.lines(f"views_{key}", about, lines, "views of a video", f"{name}, percent")
    return {"element": element, "caption": f"{name} by the number of views whose probabilities are averaged."}


def _row(name: str, measured: Mapping[str, float], keys: Iterable[str]) -> Values:
    return {"name": name, "values": [measured[key] for key in keys]}


def _label(videos: TestedVideos, i: int, names: Sequence[str]) -> str:
    """Return the names of a video's classes."""
    return ", ".join(names[number] for number in classes_of(videos.labels.item(i))) or "of no class"


def _precisions(results: Mapping[str, Any], videos: TestedVideos, names: Sequence[str]) -> Values:
    """Return a row for each class, and of many classes the extremes and a plot."""
    rows = precision_rows(results, videos, names)
    ordered = sorted((row for row in rows if row["videos"]), key=lambda row: -row["precision"])
    values: Values = {"classes": rows, "num_with_videos": len(ordered), "rank_plot": None}
    if len(names) <= ALL_CLASSES:
        return values
    return values | {
        "rank_plot": precision_plot(ordered),
        "best_classes": ordered[:EXTREMES],
        "worst_classes": ordered[: -EXTREMES - 1 : -1],
    }


def _classes(videos: TestedVideos, counts: Numbers, names: Sequence[str]) -> Values:
    """Return a row for each class, and of many classes the extremes and a plot."""
    num_videos, percent = per_class(videos.predictions, videos.labels, len(names))
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    rows: list[Values] = []
    for number, name in enumerate(names):
        other = int(wrong[number].argmax())
        taken_for = f"{names[other]} ({wrong[number, other]})" if wrong[number, other] else ""
        top1, top5 = (None if np.isnan(value) else float(value) for value in percent[number])
        rows.append(
            {
                "name": name,
                "videos": int(num_videos[number]),
                "top1": top1,
                "top5": top5,
                "taken_for": taken_for,
            }
        )
    ordered = sorted((row for row in rows if row["videos"]), key=lambda row: -row["top1"])
    values: Values = {"classes": rows, "num_with_videos": len(ordered), "rank_plot": None}
    if len(names) <= ALL_CLASSES:
        return values
    ranks = range(1, len(ordered) + 1)
    lines = [
        Line(name, ranks, sorted((row[key] for row in ordered), reverse=True))
        for name, key in (("top-1", "top1"), ("top-5, sorted by itself", "top5"))
    ]
    about = (
        f"Accuracy of {len(ordered)} classes, sorted. Top-1 of the most accurate class {lines[0].y[0]:.2f}, "
        f"of the median {np.median(lines[0].y):.2f}, of the least accurate {lines[0].y[-1]:.2f} percent."
    )
    return values | {
        "rank_plot": plots.ranks("ranks", about, lines, "percent"),
        "best_classes": ordered[:EXTREMES],
        "worst_classes": ordered[: -EXTREMES - 1 : -1],
    }


def _confusion(counts: Numbers, names: Sequence[str]) -> Values:
    """Return the pairs, the picture of many classes, and the numbers of few, or of the most confused ones."""
    pairs = confused_pairs(counts, PAIRS)
    totals = counts.sum(1).tolist()
    shown = list(range(len(names)))
    picture = None
    if len(names) > ALL_CLASSES:
        mixed_up = [number for pair in pairs for number in pair[:2]]
        shown = sorted(list(dict.fromkeys(mixed_up))[:ALL_CLASSES])
        right = np.trace(counts) / max(counts.sum(), 1)
        about = (
            f"Confusion matrix of {len(names)} classes; {100 * right:.2f} percent of the videos are on the "
            "diagonal. The tables of classes and of pairs have its numbers."
        )
        picture = plots.matrix("confusion", about, row_fractions(counts))
    opacity = plots.OPACITY * np.sqrt(row_fractions(counts))
    return {
        "pairs": [
            {"first": names[pair.first], "second": names[pair.second], "first_videos": totals[pair.first],
             "second_videos": totals[pair.second], "first_as_second": pair.first_as_second,
             "second_as_first": pair.second_as_first} for pair in pairs
        ],
        "matrix_plot": picture,
        "heat": {
            "names": [names[number] for number in shown],
            "rows": [[_cell(counts[i, j], opacity[i, j], i == j) for j in shown] for i in shown],
        },
    }  # fmt: skip


def _cell(count: int, opacity: float, is_right: bool) -> Values:
    kind = "right" if is_right else "wrong"
    return {"count": int(count), "opacity": float(opacity), "kind": kind if count else "none"}


def _mistakes(
    videos: TestedVideos, worst: Sequence[tuple[int, int]], names: Sequence[str], read_strip: ReadStrip
) -> Values:
    """Return mistakes with their strips. `worst`: videos, and the places of a wrong class in their
    predictions.
    """
    found = []
    for i, wrong in worst:
        classes, probabilities = videos.predictions.classes[i], videos.predictions.probabilities[i]
        known = dict(zip(classes.tolist(), probabilities.tolist(), strict=True))
        strip = read_strip(i, videos.names[i])
        found.append({
            "name": printable(videos.names[i]),
            "labels": [
                {"name": names[number], "probability": known.get(number)}
                for number in classes_of(videos.labels.item(i))
            ],
            "predicted": names[classes[wrong]],
            "probability": float(probabilities[wrong]),
            "frames": [base64.b64encode(frame).decode() for frame in strip.frames],
            "indices": strip.indices,
            "problem": printable(strip.problem),
        })  # fmt: skip
    problems = {video["problem"] for video in found}
    return {
        "mistakes": found,
        "has_strips": any(video["frames"] for video in found),
        "no_strips": problems.pop() if len(problems) == 1 else "",
    }
