"""Logs: readable lines on the console and in stdout.log, one JSON record per event in json_stats.log."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import simplejson
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .errors import printable

log = logging.getLogger("video_iresnet")


class _Lines(logging.Formatter):
    """Lays out records; each message is one printable line, whatever names it holds."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


class _Console(logging.StreamHandler):  # type: ignore[type-arg]
    """Prints lines above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def setup_logging(output_dir: Path, rank: int) -> None:
    """The main process logs to the console and to OUTPUT_DIR/stdout.log; the others print warnings and errors
    alone.
    """
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        handler.close()
    log.propagate = False
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    layout = _Lines("[%(asctime)s][%(levelname)s] %(filename)s: %(lineno)3d: %(message)s", "%m/%d %H:%M:%S")
    handlers: list[logging.Handler] = [_Console()]
    if rank == 0:
        handlers.append(logging.FileHandler(output_dir / "stdout.log", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(layout)
        log.addHandler(handler)


class Stats:
    """Records of a run: `json_stats: {...}` lines in json_stats.log, in PySlowFast's form (sorted keys,
    floats rounded to 5 decimals), and their numbers as curves in tensorboard/. `first_step`: where this run
    starts; curves of an earlier one are cut there (0: nowhere).
    """

    def __init__(self, output_dir: Path, first_step: int = 0) -> None:
        self._path = output_dir / "json_stats.log"
        self._curves = SummaryWriter(output_dir / "tensorboard", purge_step=first_step or None)

    def write(self, stats: dict[str, Any], step: int) -> None:
        """`step`: how many optimizer steps were done."""
        rounded = {
            key: round(value, 5) if isinstance(value, float) else value for key, value in stats.items()
        }
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(f"json_stats: {simplejson.dumps(rounded, sort_keys=True, ignore_nan=True)}\n")
        for key, value in stats.items():
            if isinstance(value, float):
                self._curves.add_scalar(f"{stats['_type'].rstrip('_')}/{key}", value, step)

    def close(self) -> None:
        self._curves.close()


def memory() -> str:
    """Resident memory of this process in gibibytes, or an empty text where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return ""
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.2f}G"
