"""The page that compares runs: results, the tests of their pairs, classes, curves, and what differs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..engine.aggregate import per_class
from ..runtime.errors import printable
from .compare import RunFolder, compare_pair, differences, metrics_of
from .curves import read_curves
from .page import TRAININGS, render, training_plots
from .tested import Values, class_names, read_test_videos, view_lines, view_plot

SECTIONS = {
    "results": "Results", "pairs": "Pairs", "views": "Number of views", "classes": "Classes",
    "training": "Training", "config": "Keys that differ", "origin": "What else differs",
}  # fmt: skip
NAMED = 5  # videos that one run lacks
CLASSES = 20  # shown at once


def runs_page(runs: Sequence[RunFolder], decides: Callable[[str], str]) -> str:
    """Return the page of several runs. `decides`: what a key of the config decides. Raises InputError where a
    file cannot be read.
    """
    runs = [run._replace(name=printable(run.name)) for run in runs]
    tested = [run for run in runs if run.results]
    checks = list(dict.fromkeys(name for run in tested for name in run.results["temporal_checks"]))
    metrics = metrics_of(tested)
    config = differences([run.config for run in runs])
    origin = differences([run.origin for run in runs])
    return render(
        "runs.html.jinja",
        names=[run.name for run in runs],
        num_runs=len(runs),
        sections=SECTIONS.items(),
        untested=[run.name for run in runs if not run.results],
        checks=[printable(name) for name in checks],
        metrics=list(metrics.values()),
        results=[_result(run, metrics, checks) for run in tested],
        pairs=[_pair(first, second) for first, second in itertools.combinations(tested, 2)],
        view_plots=_views(tested, metrics),
        classes=_classes(tested),
        most_classes=CLASSES,
        training=training_plots(
            {run.name: read_curves(run.folder / "json_stats.log") for run in runs}, TRAININGS
        ),
        config=[(key, decides(key), [_shown(value) for value in values]) for key, values in config.items()],
        origin=[
            (name.replace("_", " "), [_shown(value) for value in values]) for name, values in origin.items()
        ],
    )


def _shown(value: Any) -> str:
    return "-" if value is None else printable(str(value))


def _result(run: RunFolder, metrics: Iterable[str], checks: Sequence[str]) -> Values:
    measured, first = run.results["temporal_checks"], next(iter(metrics_of([run])))
    return {
        "name": run.name,
        "accuracies": [(run.results.get(key), run.results.get(f"{key}_interval")) for key in metrics],
        "checks": [measured.get(name, {}).get(first) for name in checks],
        "others": [_shown(run.results.get(key)) for key in ("num_videos", "num_failed", "protocol")],
    }


def _pair(first: RunFolder, second: RunFolder) -> Values:
    """Return the test of a pair, and the videos that one of the runs lacks in words."""
    found = compare_pair(first, second)
    if "problem" in found:
        return found | {"problem": printable(found["problem"])}
    lacking = []
    for name, videos in ((second.name, found["missing_in_first"]), (first.name, found["missing_in_second"])):
        if videos:
            more = ", ..." if len(videos) > NAMED else ""
            few = printable(", ".join(videos[:NAMED]))
            lacking.append(f"{len(videos)} video(s) that only {name} has are left out: {few}{more}")
    return found | {"lacking": lacking, "problem": ""}


def _views(tested: Sequence[RunFolder], metrics: Mapping[str, str]) -> list[Values]:
    return [
        view_plot(key, name, lines)
        for key, name in metrics.items()
        if (lines := [
            line for run in tested if key in run.results for line in view_lines(run.results, key, run.name)
        ]) and any(len(line.x) > 1 for line in lines)
    ]  # fmt: skip


def _classes(tested: Sequence[RunFolder]) -> Values:
    """Return the top-1 accuracy, or the average precision, by class of the runs whose classes have the names
    of the first one's, classes with the largest differences first.
    """
    if not tested:
        return {"names": [], "rows": [], "others": []}
    known = {run.name: (next(iter(metrics_of([run]))), class_names(run.results)) for run in tested}
    metric, names = known[tested[0].name]
    alike = [run for run in tested if known[run.name] == (metric, names)]
    measured = [_by_class(run, len(names)) for run in alike]
    rows = []
    for name, *values in zip(names, *measured, strict=True):
        there = [value for value in values if value is not None]
        rows.append({"name": name, "values": values, "spread": max(there) - min(there) if there else 0.0})
    return {
        "metric": "Average precision" if metric == "map" else "Top-1",
        "names": [run.name for run in alike],
        "rows": sorted(rows, key=lambda row: -row["spread"]),
        "others": [run.name for run in tested if run not in alike],
    }


def _by_class(run: RunFolder, num_classes: int) -> list[float | None]:
    """Return the top-1 accuracy, or the average precision, of each class; None where it has no video."""
    if "map" in run.results:
        return list(run.results["average_precision"])
    videos = read_test_videos(run.folder, run.results)
    _, percent = per_class(videos.predictions, videos.labels, num_classes)
    return [None if np.isnan(value) else value for value in percent[:, 0].tolist()]
