"""The command `video-iresnet`, which is `python -m video_iresnet` too: it runs a script by its name."""

from __future__ import annotations

import argparse
import ast
import difflib
import re
import runpy
import shutil
import sys
import textwrap
from importlib import metadata
from itertools import groupby
from pathlib import Path

from .runtime.errors import printable
from .runtime.root import scripts

DESCRIPTION = """Run a script by its name: video-iresnet NAME ... is `python tools/NAME.py ...` of a clone,
and video-iresnet NAME --help is its help. Configs of the project are found from any folder, as in
--cfg configs/demo/iR3D18.yaml."""
WIDEST = 110  # columns


def summary(path: Path) -> str:
    """Return the first sentence of a script's docstring, without a command behind a colon. Nothing is
    imported.
    """
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r": python |\.\s|\.$", " ".join(text.split()))[0]


def listing(columns: int) -> str:
    """Return the names with their summaries, by folder, as lines of at most `columns`."""
    lines = []
    for folder, members in groupby(scripts().items(), key=lambda item: item[1].parent.name):
        lines.append(f"{folder}:")
        for name, path in members:
            first = f"  {name:<15} "
            lines += textwrap.wrap(
                summary(path),
                columns,
                initial_indent=first,
                subsequent_indent=" " * len(first),
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def version() -> str:
    """Return the version of the installed package."""
    try:
        return metadata.version("video_iresnet")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def main() -> int:
    columns = min(shutil.get_terminal_size().columns, WIDEST)
    parser = argparse.ArgumentParser(
        prog="video-iresnet",
        description=textwrap.fill(" ".join(DESCRIPTION.split()), columns),
        epilog=listing(columns),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version())
    parser.add_argument("name", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    options = parser.parse_args(sys.argv[1:] or ["--help"])
    found = scripts()
    if options.name not in found:
        (nearest,) = difflib.get_close_matches(options.name, found, n=1, cutoff=0.0)
        print(
            printable(
                f"error: there is no script {options.name}; did you mean {nearest}? "
                "`video-iresnet --help` lists all"
            ),
            file=sys.stderr,
        )
        return 1
    sys.argv[1:] = options.arguments
    runpy.run_path(str(found[options.name]), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
