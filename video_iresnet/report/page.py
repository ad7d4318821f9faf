"""The page of a run's results: one HTML file that needs no network and no script, made from the files of the
run's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ..runtime.errors import InputError, printable, reason
from ..runtime.storage import atomic_write, open_text
from . import plots
from .compare import read_origin
from .curves import Curve, read_curves
from .plots import Line
from .results import read_results
from .strips import SIZE, ReadStrip
from .tested import read_test_videos, tested_parts

GENERATOR = "video_iresnet tools/report.py"
SECTIONS = {
    "accuracy": "Accuracy", "views": "Number of views", "checks": "Temporal checks", "classes": "Classes",
    "confusion": "Confusion matrix", "pairs": "Most confused pairs", "mistakes": "Worst mistakes",
    "training": "Training", "failed": "Failed videos", "reproduction": "Config and stamp",
}  # fmt: skip
OF_ONE_LABEL = ("confusion", "pairs")
# Plots of a training: title -> the curves with their names.
TRAINING = {
    "loss": {"train_iter loss": "at log lines", "train_epoch loss": "means of epochs"},
    "error in percent": {
        "train_epoch top1_err": "training, top-1", "train_epoch top5_err": "training, top-5",
        "val_epoch top1_err": "validation, top-1", "val_epoch top5_err": "validation, top-5",
    },
    "learning rate": {"train_iter lr": "learning rate"},
    "mean average precision in percent": {"val_epoch map": "validation"},
}  # fmt: skip
TRAININGS = {  # of several runs
    "loss": {"train_epoch loss": ""},
    "top-1 error of validation in percent": {"val_epoch top1_err": ""},
    "learning rate": {"train_iter lr": ""},
    "mean average precision of validation in percent": {"val_epoch map": ""},
}
# It keeps the templates that were compiled.
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def write_page(folder: Path, read_strip: ReadStrip) -> Path:
    """Write the page of a run to report.html in its folder; returns the path. Raises InputError."""
    path = folder / "report.html"
    write_html(path, run_page(folder, read_strip))
    return path


def check_replaceable(path: Path) -> None:
    """Raise InputError if a file is there that is no page of ours."""
    try:
        if path.exists() and GENERATOR.encode() not in path.read_bytes()[:1000]:
            raise InputError(f"{path} is there and is no page of this script; name another --out")
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}; name another --out") from error


def write_html(path: Path, page: str) -> None:
    with atomic_write(path, "wb") as file:
        file.write(page.encode(errors="backslashreplace"))


def run_page(folder: Path, read_strip: ReadStrip) -> str:
    """Return the page of a run. Raises InputError where a file of the folder cannot be read."""
    results = read_results(folder / "results.json")
    test = None
    if results:
        test = tested_parts(results, read_test_videos(folder, results), read_strip)
    origin = read_origin(folder, results)
    origin.pop("tested epoch", None)  # which counts from 0
    config = folder / "config.yaml"
    return render(
        "run.html.jinja",
        name=printable(folder.resolve().name),
        sections=[item for item in SECTIONS.items() if "map" not in results or item[0] not in OF_ONE_LABEL],
        num_runs=1,
        test=test,
        training=training_plots({"": read_curves(folder / "json_stats.log")}, TRAINING),
        origin={name.replace("_", " "): printable(str(value)) for name, value in origin.items()},
        config=_text(config) if config.exists() else "",
        strip_size=SIZE,
    )


def training_plots(
    runs: Mapping[str, Mapping[str, Curve]], wanted: Mapping[str, Mapping[str, str]]
) -> list[dict[str, Any]]:
    """Return plots of the curves of trainings by the names of the runs, with captions. `wanted`: see
    TRAINING.
    """
    found = []
    for number, (title, curves) in enumerate(wanted.items()):
        drawn = [
            Line(f"{run} {name}".strip(), *curve_of[key], has_markers=len(curve_of[key][0]) < 50)
            for run, curve_of in runs.items()
            for key, name in curves.items()
            if key in curve_of
        ]
        if drawn:
            ends = ", ".join(f"{line.name}: {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in drawn)
            element = plots.lines(f"training_{number}", f"{title} by epoch. {ends}", drawn, "epoch", title)
            found.append({"element": element, "caption": f"{title.capitalize()} by epoch."})
    return found


def render(template: str, **values: Any) -> str:
    """Return a page; texts in `values` are escaped."""
    colors = {"right": " ".join(map(str, plots.RIGHT)), "wrong": " ".join(map(str, plots.WRONG))}
    return ENVIRONMENT.get_template(template).render(generator=GENERATOR, colors=colors, **values)


def _text(path: Path) -> str:
    """Return a text file with each line printable."""
    with open_text(str(path)) as file:
        return "\n".join(printable(line) for line in file.read().splitlines())
