"""Write the page of a run's results, or one that compares runs: python tools/report.py RUN [RUN ...].

A test writes OUTPUT_DIR/report.html by itself; this makes it again from the files in the folder, and from the
videos if they are still where config.yaml says. Of several runs it writes comparison.html: results with 95 %
intervals, McNemar's test of each pair, views, classes, trainings, and what differs.

    python tools/report.py output/ucf101_iR3D18
    python tools/report.py output/ucf101_iR3D18 output/ucf101_R3D18 --out ucf101.html
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet import build
from video_iresnet.changes import decides
from video_iresnet.config import config_of_run, keys_of_run
from video_iresnet.report.compare import names_of, read_run
from video_iresnet.report.page import check_replaceable, run_page, write_html
from video_iresnet.report.results import read_results
from video_iresnet.report.runs_page import runs_page
from video_iresnet.report.strips import ReadStrip, no_strips, strips_of
from video_iresnet.runtime.errors import InputError, printable


def read_strip(folder: Path) -> ReadStrip:
    """Return how to read frames of the videos of a run's test, which may be elsewhere by now."""
    try:
        cfg = config_of_run(folder)
        data = build.build_test_data(cfg, build.build_records(cfg, "DATA.TEST_LIST"))
    except InputError as error:
        return no_strips(str(error))
    protocol = f"{data.protocol}, clips of {build.clip_text(cfg)}"
    if read_results(folder / "results.json").get("protocol") != protocol:
        return no_strips(f"config.yaml is of a test with other clips, {protocol}")
    return strips_of(data)


def report(options: argparse.Namespace) -> None:
    """Write the page."""
    folders: list[Path] = options.folders
    for folder in folders:
        config_of_run(folder)
    if len(folders) == 1:
        path = options.out or folders[0] / "report.html"
        check_replaceable(path)
        page = run_page(folders[0], read_strip(folders[0]))
    else:
        path = options.out or Path("comparison.html")
        check_replaceable(path)
        names = names_of(folders)
        runs = [
            read_run(folder, name, keys_of_run(folder)) for folder, name in zip(folders, names, strict=True)
        ]
        page = runs_page(runs, decides)
    write_html(path, page)
    print(printable(f"{path}: {path.stat().st_size / 1e6:.2f} MB"))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="an OUTPUT_DIR")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: RUN/report.html, or comparison.html"
    )
    options = parser.parse_args(arguments)
    return exit_code(lambda: report(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
