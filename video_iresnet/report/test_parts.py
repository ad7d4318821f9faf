"""What a page shows of a test: plain values for its template, from results.json and predictions.csv."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..engine.aggregate import TOP, Numbers, per_class
from ..runtime.errors import InputError, printable, reason
from . import plots
from .mistakes import confused_pairs, confusion, row_fractions, worst_mistakes
from .plots import Line
from .results import TestedVideos
from .strips import ReadStrip

ALL_CLASSES = 20  # so many are shown with names and numbers; of more, the extremes and a picture
EXTREMES = 20  # of the classes, at either end
PAIRS = 20  # of classes that are mixed up
MISTAKES = 12
FAILED = 500  # rows

Values = dict[str, Any]


def test_parts(results: Mapping[str, Any], videos: TestedVideos, read_strip: ReadStrip) -> Values:
    """Return the values that the template of a run takes of a test. Raises InputError where the files do not
    fit each other or lack what a test writes.
    """
    try:
        num_classes = int(results["num_classes"])
        names = class_names(results)
        values = _accuracies(results) | {"num_classes": num_classes, "chance": 100 / num_classes}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"results.json is not as a test writes it ({reason(error)}); test again") from error
    largest = max(videos.labels.max(initial=-1), videos.predictions.classes.max(initial=-1))
    if (
        not 0 < len(videos.names) == results["num_videos"]
        or largest >= num_classes
        or videos.labels.min() < 0
    ):
        raise InputError("predictions.csv does not fit results.json in videos or classes; test again")
    counts = confusion(videos, num_classes)
    return (
        values
        | _classes(videos, counts, names)
        | _confusion(counts, names)
        | _mistakes(videos, names, read_strip)
        | {"failed": [
            {"name": printable(videos.names[i]), "label": names[videos.labels[i]], "error": printable(error)}
            for i, error in enumerate(videos.errors) if error
        ][:FAILED]}
    )  # fmt: skip


def class_names(results: Mapping[str, Any]) -> list[str]:
    """Return the names of all classes with their numbers, which stand alone where the names are not known."""
    known = results.get("class_names") or [""] * int(results["num_classes"])
    if len(known) != results["num_classes"]:
        raise ValueError(f"{len(known)} class names for {results['num_classes']} classes")
    return [f"{number} {printable(str(name))}".strip() for number, name in enumerate(known)]


def views_of(protocol: str) -> tuple[int, int]:
    """10x3 -> 10 clips, 30 views."""
    clips, crops = (int(number) for number in protocol.split("x"))
    return clips, clips * crops


def view_lines(results: Mapping[str, Any], accuracy: str, name: str = "") -> list[Line]:
    """Return the accuracy by number of views as a line for each number of crops."""
    lines: dict[int, tuple[list[int], list[float]]] = {}
    for protocol, measured in results.get("by_number_of_clips", {}).items():
        clips, views = views_of(protocol)
        x, y = lines.setdefault(views // clips, ([], []))
        x.append(views)
        y.append(float(measured[accuracy]))
    return [Line(f"{name} {crops} crop{'s' * (crops > 1)}".strip(), x, y) for crops, (x, y) in lines.items()]


def _accuracies(results: Mapping[str, Any]) -> Values:
    five = f"top-{min(TOP, int(results['num_classes']))}"
    figures = [
        {"name": name, "value": float(results[key]), "interval": results.get(f"{key}_interval")}
        for name, key in (("top-1", "top1_acc"), (five, "top5_acc"))
    ]
    by_protocol = results.get("by_number_of_clips") or results["by_views"]
    own = {"own order": {key: results[key] for key in ("top1_acc", "top5_acc")}}
    checks = results["temporal_checks"]
    stamp = results.get("stamp") or {}
    epoch = results.get("epoch")  # the last complete one, counted from 0
    after = f"after {epoch + 1} epochs" if isinstance(epoch, int) else None
    weights = f"weights {stamp['weights']}" if "weights" in stamp else None
    plotted = (("top1_acc", "top-1"), ("top5_acc", five))
    return {
        "five": five,
        "figures": figures,
        "readable": [results["top1_acc_readable"], results["top5_acc_readable"]],
        "num_videos": int(results["num_videos"]),
        "num_failed": int(results["num_failed"]),
        "protocol": printable(str(results["protocol"])),
        "tested": printable(", ".join(str(it) for it in (results.get("checkpoint"), after, weights) if it)),
        "view_rows": [
            _row(name, measured) | {"views": views_of(name)[1]} for name, measured in by_protocol.items()
        ],
        "view_plots": [
            view_plot(key, name, view_lines(results, key)) for key, name in plotted
            if len(results.get("by_number_of_clips", {})) > 1
        ],
        "check_rows": [
            _row(printable(name), measured) | {"change": measured["top1_acc"] - results["top1_acc"]}
            for name, measured in ({**own, **checks} if checks else {}).items()
        ],
    }  # fmt: skip


def view_plot(key: str, name: str, lines: Sequence[Line]) -> Values:
    """Return a plot of the accuracy by number of views, with a caption."""
    ends = ", ".join(f"{line.name}: {line.y[0]:.2f} to {line.y[-1]:.2f}" for line in lines)
    about = f"{name} accuracy in percent by number of views of a video. {ends}"
    element = plots.lines(f"views_{key}", about, lines, "views of a video", f"{name}, percent")
    return {"element": element, "caption": f"{name} by the number of views whose probabilities are averaged."}


def _row(name: str, measured: Mapping[str, float]) -> Values:
    return {"name": name, "top1": float(measured["top1_acc"]), "top5": float(measured["top5_acc"])}


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


def _mistakes(videos: TestedVideos, names: Sequence[str], read_strip: ReadStrip) -> Values:
    """Return the worst mistakes with their strips."""
    found = []
    for i in worst_mistakes(videos, MISTAKES):
        classes, probabilities = videos.predictions.classes[i], videos.predictions.probabilities[i]
        place = np.flatnonzero(classes == videos.labels[i])
        strip = read_strip(i, videos.names[i])
        found.append({
            "name": printable(videos.names[i]),
            "label": names[videos.labels[i]],
            "label_probability": float(probabilities[place[0]]) if len(place) else None,
            "predicted": names[classes[0]],
            "probability": float(probabilities[0]),
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
