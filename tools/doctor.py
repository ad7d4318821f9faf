"""What this machine can do, and what stands in its way: python tools/doctor.py [--folder output]
[--json FILE].

Looks at Python, PyTorch, GPUs, cuDNN, half precision, cores, memory, disk, shared memory and open files;
decodes a video that it writes with every decoder, and trains a step of a tiny network on each device. Prints
a table of ok, warning and problem, with what helps. The exit status is 1 if there is a problem, otherwise 0.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from tabulate import tabulate

from video_iresnet.doctor.finding import OK, PROBLEM, Finding, examine, worst
from video_iresnet.runtime.storage import atomic_write

HEADERS = ("check", "status", "found -> what helps")
WIDEST, NARROWEST = 120, 60  # columns of the table


def table(findings: list[Finding], columns: int) -> str:
    """Return one row a finding, within a number of columns; remedies follow an arrow."""
    columns = min(max(columns, NARROWEST), WIDEST)
    used = sum(max(len(HEADERS[i]) + 2, *(len(found[i]) for found in findings)) + 2 for i in (0, 1))
    rows = [(*finding[:2], " -> ".join(filter(None, finding[2:]))) for finding in findings]
    return tabulate(
        rows,
        headers=HEADERS,
        tablefmt="simple",
        maxcolwidths=[None, None, columns - used],
        disable_numparse=True,
    )


def report(folder: Path, path: Path | None) -> int:
    """Print what was found, and write it as JSON; return the exit status."""
    findings = list(examine(folder))
    print(table(findings, shutil.get_terminal_size().columns))
    status = worst(findings)
    number = sum(finding.status != OK for finding in findings)
    print(f"\n{status}: {len(findings)} findings, of which {number} are not ok")
    if path:
        with atomic_write(path) as file:
            json.dump({"status": status, "findings": [f._asdict() for f in findings]}, file, indent=1)
    return int(status == PROBLEM)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where runs will write (default: this folder)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the findings there")
    options = parser.parse_args(arguments)
    return exit_code(lambda: report(options.folder, options.json))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
