"""Recompute results from stored views, without GPU and videos: python tools/aggregate.py OUTPUT_DIR [...].

Prints the accuracies of a protocol, of all smaller ones and by class, their 95 % bootstrap intervals and the
calibration error; for videos with many labels, mean average precision without the last two. Several folders
are an ensemble. For intervals over UCF101's groups of videos:

    python tools/aggregate.py output/ucf101_iR3D18 --protocol 3x1 --groups '_(g[0-9]+)_' --json results.json
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

import numpy as np
from tabulate import tabulate

from video_iresnet.engine import aggregate
from video_iresnet.engine.aggregate import Numbers, Pooling, Protocol
from video_iresnet.engine.views import ViewStore
from video_iresnet.report.results import clips_and_crops, metrics, table, write_results
from video_iresnet.runtime.errors import InputError

# Keys of results.json that do not come from the views.
OF_THE_RUN = ("checkpoint", "epoch", "class_names", "seconds", "views", "stamp")


def find(folder: Path) -> tuple[ViewStore, dict[str, Any]]:
    """Return the views in a folder, and results.json if it belongs to them. It also selects among the views
    of several tests.
    """
    results: dict[str, Any] = {}
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text()) if path.exists() else {}
        name = Path(results.get("views", "")).name
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"cannot read {path}: {error}; run the test again") from error
    stored = sorted(path for path in folder.glob("views/*") if path.is_dir())
    if name and folder / "views" / name in stored:
        return ViewStore.open(folder / "views" / name), results
    if not stored:
        raise InputError(
            f"{folder} holds no views of a test; name an OUTPUT_DIR that was tested with TEST.STORED_VIEWS "
            "float32 or float16"
        )
    if len(stored) > 1:
        names = ", ".join(path.name for path in stored)
        raise InputError(
            f"{folder} holds the views of several tests ({names}), and results.json names none; run the test "
            "that you mean again"
        )
    return ViewStore.open(stored[0]), {}


def report(options: argparse.Namespace) -> None:
    """Print the tables and write --json."""
    found = [find(folder) for folder in options.folders]
    stores = [store for store, _ in found]
    about, pooling = stores[0].about, Pooling(options.pool, options.of)
    numbers, outcome = aggregate.results(stores, protocol(options.protocol), pooling, options.groups)
    for key in OF_THE_RUN:
        values = [(store.about | results)[key] for store, results in found if key in (store.about | results)]
        if len(values) == len(stores):
            numbers[key] = values[0] if all(value == values[0] for value in values) else values
    if options.json:
        write_results(options.json, numbers)
    *_, name = numbers["by_views"]
    predictions, names = outcome.predictions[name], list(metrics(numbers).values())
    print(f"{numbers['protocol']}: {table(numbers)}")
    if aggregate.has_many_labels(about):
        names = ["AP"]
        counts, percent = outcome.labels.sum(0), np.array([numbers["average_precision"]], float).T
    else:
        error = aggregate.calibration_error(predictions, outcome.labels)
        print(f"expected calibration error: {error:.2f}")
        counts, percent = aggregate.per_class(predictions, outcome.labels, about["num_classes"])
    print(f"\n{views_table(numbers)}\n")
    print(class_table(counts, percent, names, about))


def protocol(text: str | None) -> Protocol | None:
    """10x3 -> (10, 3)."""
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text or "")
    if text and not match:
        raise InputError(f"--protocol is {text}; expected clips x crops, as in 10x3")
    return (int(match[1]), int(match[2])) if match else None


def views_table(numbers: Mapping[str, Any]) -> str:
    """Return a table of the accuracy by number of views."""
    keys = metrics(numbers)
    rows = [
        (name, math.prod(clips_and_crops(name)), *(measured[key] for key in keys))
        for name, measured in numbers["by_number_of_clips"].items()
    ]
    return tabulate(rows, headers=["protocol", "views", *keys.values()], floatfmt=".2f")


def class_table(counts: Numbers, percent: Numbers, metrics: Sequence[str], about: Mapping[str, Any]) -> str:
    """Return a table of the accuracy by class: (K, M) `percent` of the (M,) `metrics`."""
    names = about["class_names"] or [""] * len(counts)
    rows = zip(range(len(counts)), names, counts, *percent.T, strict=True)
    return tabulate(rows, headers=["class", "name", "videos", *metrics], floatfmt=".2f")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="OUTPUT_DIR")
    parser.add_argument("--protocol", metavar="10x3", help="clips x crops (default: all stored views)")
    parser.add_argument("--pool", choices=["mean", "max"], default="mean", help="over the views of a video")
    parser.add_argument(
        "--of", choices=["probabilities", "logits"], default="probabilities", help="what is pooled"
    )
    parser.add_argument(
        "--groups",
        default="",
        metavar="REGEX",
        help="draw whole groups for the intervals: what (...) finds in a video's name",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the keys of results.json")
    options = parser.parse_args(arguments)
    return exit_code(lambda: report(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
