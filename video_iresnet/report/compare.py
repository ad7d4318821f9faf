"""What differs between runs, and McNemar's test of their results on the same videos."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..engine.aggregate import hits
from ..runtime.errors import InputError
from ..runtime.stamp import read_stamps
from .results import metrics, read_predictions, read_results

SIGNIFICANT = 0.05
OWN = ("since", "config")  # what each run's stamp has of its own: the config names its OUTPUT_DIR


class Answer(NamedTuple):
    """Whether the most probable class of a video is its label; a failed video is wrong."""

    video: str
    label: int
    is_right: bool


class RunFolder(NamedTuple):
    """What a run left behind: the keys of its config, and what else its numbers depended on; `results` and
    `answers` are empty if it was not tested, and `answers` if its videos have many labels.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    origin: dict[str, Any]
    results: dict[str, Any]
    answers: list[Answer]


class Pair(NamedTuple):
    """Two runs on the videos of both: numbers of videos by who is right, McNemar's p-value, and the videos
    that one of the runs lacks.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float
    missing_in_first: list[str]
    missing_in_second: list[str]


def read_answers(path: Path) -> list[Answer]:
    """Read predictions.csv. Raises InputError."""
    videos = read_predictions(path)
    right = hits(videos.predictions, videos.labels)[:, 0]
    return [
        Answer(name, label, is_right)
        for name, label, is_right in zip(videos.names, videos.labels.tolist(), right.tolist(), strict=True)
    ]


def read_run(folder: Path, name: str, config: Mapping[str, Any]) -> RunFolder:
    """Read what a run with this config left in its OUTPUT_DIR. Raises InputError, with the file."""
    results = read_results(folder / "results.json")
    answers = read_answers(folder / "predictions.csv") if results and "map" not in results else []
    return RunFolder(name, folder, config, read_origin(folder, results), results, answers)


def metrics_of(runs: Sequence[RunFolder]) -> dict[str, str]:
    """Return the keys of results.json that say how accurate the runs are, and what they are called."""
    found: dict[str, str] = {}
    for run in runs:
        found |= metrics(run.results)
    return found


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return the names of folders, or their paths where names are equal."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def read_origin(folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run and its results depended on besides the config: each value of its stamps, where they
    changed in their order, and what was tested. Raises InputError.
    """
    found: dict[str, list[Any]] = {}
    for stamp in read_stamps(folder / "stamp.json"):
        for name, value in stamp.items():
            if found.setdefault(name, [value])[-1] != value:
                found[name].append(value)
    origin = {name: ", then ".join(map(str, values)) for name, values in found.items() if name not in OWN}
    tested = results.get("stamp") or {}
    origin |= {f"tested {name}": tested[name] for name in ("weights", "test_list") if name in tested}
    if "epoch" in results:
        origin["tested epoch"] = results["epoch"]
    return origin


def differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of each key on which runs differ, one a run; None where a run lacks it."""
    keys = dict.fromkeys(key for run in runs for key in run)
    values = {key: [run.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's test (1947) in its exact form: the probability that, of the
    videos on which exactly one run is right, a fair coin would give either side at least as many as the
    larger of the two numbers.
    """
    total, smaller = only_first + only_second, min(only_first, only_second)
    term = tail = 1
    for k in range(1, smaller + 1):  # of binomial coefficients, as whole numbers
        term = term * (total - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / (1 << total))


def compare(first: Sequence[Answer], second: Sequence[Answer]) -> Pair:
    """Compare two runs on the videos of both, found by their names, or else by their names without suffix and
    common folder. A name that is listed twice is two videos.

    Raises InputError if no video is common, or one has another label.
    """
    ours, theirs = _by_name(first, _names(first)), _by_name(second, _names(second))
    if not ours.keys() & theirs.keys():
        ours, theirs = _by_name(first, _bare_names(first)), _by_name(second, _bare_names(second))
    common = [key for key in ours if key in theirs]
    if not common:
        raise InputError("they have no video in common; expected tests of one list")
    for key in common:
        if ours[key].label != theirs[key].label:
            raise InputError(
                f"{ours[key].video} is of class {ours[key].label} in the first and of class "
                f"{theirs[key].label} in the second; expected one numbering of classes"
            )
    counts = Counter((ours[key].is_right, theirs[key].is_right) for key in common)
    return Pair(
        counts[True, True],
        counts[True, False],
        counts[False, True],
        counts[False, False],
        mcnemar(counts[True, False], counts[False, True]),
        [answer.video for key, answer in theirs.items() if key not in ours],
        [answer.video for key, answer in ours.items() if key not in theirs],
    )


def compare_pair(first: RunFolder, second: RunFolder) -> dict[str, Any]:
    """Return the test of two runs as a dictionary, or why there is none."""
    found: dict[str, Any] = {"first": first.name, "second": second.name}
    if "map" in first.results or "map" in second.results:
        return found | {"problem": "McNemar's test is for videos of one label, which are right or wrong"}
    try:
        pair = compare(first.answers, second.answers)
    except InputError as error:
        return found | {"problem": str(error)}
    return found | pair._asdict() | {"meaning": in_words(pair, first.name, second.name)}


def _names(answers: Sequence[Answer]) -> list[str]:
    return [answer.video for answer in answers]


def _bare_names(answers: Sequence[Answer]) -> list[str]:
    names = _names(answers)
    first, last = min(names, default=""), max(names, default="")
    folders = [i + 1 for i, c in enumerate(first) if c == "/" and last.startswith(first[: i + 1])]
    return [os.path.splitext(name[max(folders, default=0) :])[0] for name in names]


def _by_name(answers: Sequence[Answer], names: Iterable[str]) -> dict[tuple[str, int], Answer]:
    """Return the answers by (name, number of earlier videos of this name)."""
    seen: Counter[str] = Counter()
    found = {}
    for answer, name in zip(answers, names, strict=True):
        found[name, seen[name]] = answer
        seen[name] += 1
    return found


def in_words(pair: Pair, first: str, second: str) -> str:
    """Say what a comparison means."""
    differing = pair.only_first + pair.only_second
    videos = differing + pair.both + pair.neither
    if not differing:
        return f"{first} and {second} are right on the same of {videos} videos"
    split = f"{pair.only_first} to {pair.only_second}"
    text = f"{first} and {second} differ on {differing} of {videos} videos, {split}: p {pair.p_value:.2g}. "
    text += "If both were equally accurate, a split at least this uneven would come about in "
    text += f"{_times(pair.p_value)} tests"
    return text if pair.p_value < SIGNIFICANT else f"{text}, so this one does not tell them apart"


def _times(probability: float) -> str:
    for of in (100, 1000):
        if probability * of >= 1:
            return f"{math.floor(probability * of + 0.5)} of {of}"
    return "fewer than 1 of 1000"
