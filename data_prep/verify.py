"""Decode every video of a list completely and report what is wrong with the data.

    python data_prep/verify.py --list /data/k400/train.csv --against /data/k400/val.csv --report report.html

Bad, and left out of the clean list: files that are missing, unreadable, truncated or without video frames.
Worth a look, but kept: damaged pictures that the decoder conceals, lost frames, frames at the start that
cannot be shown, frame rates outside [10, 61] or uneven ones, copies (files with the same bytes) in the list
and in those of --against. Written next to the list, or to --out, for a train.csv:
train_clean.csv; train_bad.csv (path, label, problem, reason); train_verify.html, the report, or where
--report says; train_verify.json, the same for machines; train_verify.jsonl, what was found in each video;
packets.sqlite, with which runs open the videos faster.

It can be interrupted and restarted: a video whose path, size and time of change are in train_verify.jsonl is
not decoded again, unless it was bad. Videos are only read.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet.prep.jobs import add_options
from video_iresnet.prep.verify import output_files, verify


def summarise(result: dict[str, Any]) -> None:
    print(f"{result['good']} of {result['videos']} videos are good")
    for kind in ("bad", "warnings"):
        for problem, number in Counter(row["problem"] for row in result[kind]).most_common():
            print(f"  {number} {problem}" + (" (kept)" if kind == "warnings" else ""))
    if result["copies"]:
        remarks = Counter(remark for copy in result["copies"] for remark in copy["remarks"])
        print(
            f"  {len(result['copies'])} groups of copies (kept)"
            + "".join(f", {number} {remark}" for remark, number in remarks.items())
        )


def prepare(options: argparse.Namespace) -> None:
    files = output_files(options.list, options.out, options.report)
    result = verify(
        options.list,
        options.against,
        files,
        workers=options.workers,
        ray_address=options.ray,
        many_labels=options.many_labels,
    )
    print(*files[:-1], sep="\n")
    summarise(result)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--list", type=Path, required=True, help="`path label` lines; relative paths start at its folder"
    )
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        metavar="LIST",
        help="other lists, such as the validation's, to find copies in",
    )
    parser.add_argument("--out", type=Path, help="folder to write into (default: the list's)")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="(default: LIST_verify.html)")
    parser.add_argument(
        "--many-labels",
        action="store_true",
        help="lists have lines of `path 3,17,42`, as with DATA.MULTI_LABEL",
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    return exit_code(lambda: prepare(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
