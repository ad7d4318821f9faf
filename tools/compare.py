"""What differs between runs, and what it means: python tools/compare.py RUN RUN [...] [--json FILE].

Prints the keys of their configs that differ, what else their numbers depended on (code, libraries, machine,
lists, weights), their results with 95 % intervals, and for each pair McNemar's exact test on the videos of
both, from predictions.csv, unless videos have many labels. Failed videos count as wrong. The test takes
videos as independent of each other; where several come from one recording, as in UCF101, the p-value is too
small.

    python tools/compare.py output/ucf101_iR3D18 output/ucf101_R3D18 --json compared.json
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from tabulate import tabulate

from video_iresnet.changes import decides
from video_iresnet.config import keys_of_run
from video_iresnet.report.compare import (
    RunFolder,
    compare_pair,
    differences,
    metrics_of,
    names_of,
    read_run,
)
from video_iresnet.report.results import write_results
from video_iresnet.runtime.errors import InputError, printable

SHOWN = 5  # videos named per run; --json names all
LONGEST = 48  # characters of a value in a table


def report(options: argparse.Namespace) -> None:
    """Print what differs, and write --json."""
    if len(options.folders) < 2:
        raise InputError(f"{options.folders[0]} is one run; name two or more")
    names = names_of(options.folders)
    runs = [
        read_run(folder, name, keys_of_run(folder))
        for folder, name in zip(options.folders, names, strict=True)
    ]
    config = differences([run.config for run in runs])
    origin = differences([run.origin for run in runs])
    rows = [(key, decides(key), *map(shown, values)) for key, values in config.items()]
    section("Keys that differ", rows, ["key", "decides", *names], "the configs are equal")
    rows = [(name.replace("_", " "), *map(shown, values)) for name, values in origin.items()]
    section("What else differs", rows, ["", *names], "code, libraries, machine, lists and weights are equal")
    tested = [run for run in runs if run.results]
    checks = list(dict.fromkeys(name for run in tested for name in run.results.get("temporal_checks", {})))
    metrics = metrics_of(tested)
    rows = [result_row(run, metrics, checks) for run in tested]
    section(
        "Results", rows, ["", *metrics.values(), *checks, "videos", "failed", "protocol"], "none was tested"
    )
    pairs = [compare_pair(first, second) for first, second in itertools.combinations(tested, 2)]
    print_pairs(pairs, names=[run.name for run in runs if not run.results])
    if options.json:
        write_results(options.json, {
            "runs": {run.name: {"folder": str(run.folder), **numbers(run)} for run in runs},
            "config": {key: dict(zip(names, values, strict=True)) for key, values in config.items()},
            "origin": {key: dict(zip(names, values, strict=True)) for key, values in origin.items()},
            "pairs": pairs,
        })  # fmt: skip


def section(title: str, rows: Sequence[Sequence[str]], headers: Sequence[str], nothing: str) -> None:
    text = tabulate(rows, headers=headers, disable_numparse=True) if rows else nothing
    print(f"{title}\n\n{text}\n")


def shown(value: Any) -> str:
    """Return a value as a cell of a table."""
    text = "-" if value is None else printable(str(value))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def result_row(run: RunFolder, metrics: Iterable[str], checks: Sequence[str]) -> list[str]:
    """Return accuracies in percent with their intervals, then the temporal checks' first accuracy."""
    cells = [run.name]
    for name in metrics:
        if name not in run.results:
            cells.append("-")
            continue
        low, high = run.results.get(f"{name}_interval") or (None, None)
        interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
        cells.append(f"{run.results[name]:.2f}{interval}")
    measured = run.results.get("temporal_checks", {})
    first = next(iter(metrics_of([run])))
    cells += [f"{measured[name][first]:.2f}" if name in measured else "-" for name in checks]
    return cells + [shown(run.results.get(name)) for name in ("num_videos", "num_failed", "protocol")]


def numbers(run: RunFolder) -> dict[str, Any]:
    """Return what --json holds of results.json."""
    metrics = metrics_of([run]) if run.results else {}
    names = [*metrics, *(f"{name}_interval" for name in metrics)]
    names += ["num_videos", "num_failed", "protocol", "temporal_checks"]
    return {name: run.results[name] for name in names if name in run.results}


def print_pairs(pairs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Print what was found on the pairs. `names`: runs without results."""
    for name in names:
        print(f"{name} holds no results of a test")
    for pair in pairs:
        first, second = pair["first"], pair["second"]
        if "problem" in pair:
            print(f"{first} and {second} cannot be compared: {pair['problem']}")
            continue
        print(f"{pair['meaning']}.")
        for name, videos in ((second, pair["missing_in_first"]), (first, pair["missing_in_second"])):
            if videos:
                more = ", ..." if len(videos) > SHOWN else ""
                few = printable(", ".join(videos[:SHOWN]))
                print(f"  left out, as only {name} has {'it' if len(videos) == 1 else 'them'}: "
                      f"{len(videos)} video(s), {few}{more}")  # fmt: skip
    if len(pairs) > 1:
        print(f"Of {len(pairs)} pairs of equally accurate runs, one in 20 has a p below 0.05 by chance.")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="an OUTPUT_DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it")
    options = parser.parse_args(arguments)
    return exit_code(lambda: report(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
