"""What a page shows of a test whose videos have many labels, beside what it shows of any test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import plots
from .plots import Line
from .results import TestedVideos

Values = dict[str, Any]


def precision_rows(
    results: Mapping[str, Any], videos: TestedVideos, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the average precision of each class, and the number of videos that have it."""
    counts = np.bincount([number for label in videos.labels for number in label], minlength=len(names))
    rows = zip(names, results["average_precision"], counts.tolist(), strict=True)
    return [{"name": name, "precision": value, "videos": count} for name, value, count in rows]


def precision_plot(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Draw the average precision of the classes that a video has, sorted."""
    values = [row["precision"] for row in rows]
    about = (
        f"Average precision of {len(values)} classes, sorted: the highest is {values[0]:.2f}, the median "
        f"{np.median(values):.2f}, the lowest {values[-1]:.2f} percent."
    )
    return plots.ranks(
        "ranks", about, [Line("average precision", range(1, len(values) + 1), values)], "percent"
    )


def false_alarms(videos: TestedVideos, most: int) -> list[tuple[int, int]]:
    """Return videos with the place among their most probable classes of the first one that they do not have,
    the most probable first, at most `most`; failed videos have none.
    """
    found = []
    for i, (classes, label) in enumerate(zip(videos.predictions.classes, videos.labels, strict=True)):
        wrong = [place for place, number in enumerate(classes) if number >= 0 and number not in label]
        if wrong:
            found.append((i, wrong[0]))
    return sorted(found, key=lambda item: -videos.predictions.probabilities[item])[:most]
