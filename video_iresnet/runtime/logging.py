"""Logging: readable lines on the console and in stdout.log, JSON records in json_stats.log."""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import simplejson
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from .errors import printable, reason
from .storage import append_whole

log = logging.getLogger("video_iresnet")


class _Lines(logging.Formatter):
    """Formats records; each message is one printable line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


class _Console(logging.StreamHandler):  # type: ignore[type-arg]
    """Prints lines above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a closed console, or a full disk behind it, ends no run
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()


class _Appended:
    """A file that grows by whole entries. If writing fails, one warning is logged, and the run continues."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned = False

    def add(self, data: bytes) -> None:
        try:
            append_whole(self.path, data)
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning(
                    "cannot write %s: %s; the run goes on, and the file lacks what does not fit",
                    self.path,
                    reason(error),
                )


class _File(logging.Handler):
    """Writes lines to a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = _Appended(path)

    def emit(self, record: logging.LogRecord) -> None:
        self._file.add(f"{self.format(record)}\n".encode(errors="backslashreplace"))


def setup_logging(output_dir: Path, rank: int) -> None:
    """Log to the console and to OUTPUT_DIR/stdout.log, on the main process only."""
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        handler.close()
    log.propagate = False
    log.setLevel(logging.INFO if rank == 0 else logging.CRITICAL)
    layout = _Lines("[%(asctime)s][%(levelname)s] %(filename)s: %(lineno)3d: %(message)s", "%m/%d %H:%M:%S")
    handlers: list[logging.Handler] = [_Console()]
    if rank == 0:
        handlers.append(_File(output_dir / "stdout.log"))
    for handler in handlers:
        handler.setFormatter(layout)
        log.addHandler(handler)


class Stats:
    """Records of a run: `json_stats: {...}` lines in json_stats.log, in PySlowFast's format (sorted keys,
    floats rounded to 5 decimals), and curves, texts and images in tensorboard/. `first_step`: where this run
    starts; earlier curves are cut there (0: nowhere). `others`: functions that get each record, and its step.

    Every record is complete at once, so there is nothing to close. TensorBoard's own writer uses a thread,
    whose disk errors cannot be caught.
    """

    def __init__(
        self,
        output_dir: Path,
        first_step: int = 0,
        others: Sequence[Callable[[dict[str, Any], int], None]] = (),
    ) -> None:
        self._others = others
        self._lines = _Appended(output_dir / "json_stats.log")
        folder = output_dir / "tensorboard"
        with suppress(OSError):  # the first curve reports it
            folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._curves = _Appended(folder / name)
        self._add_event(file_version="brain.Event:2", step=first_step)
        if first_step:
            self._add_event(session_log=SessionLog(status=SessionLog.START), step=first_step)

    def write(self, stats: dict[str, Any], step: int) -> None:
        """Write a record. `step`: number of optimizer steps done."""
        rounded = {
            key: round(value, 5) if isinstance(value, float) else value for key, value in stats.items()
        }
        line = f"json_stats: {simplejson.dumps(rounded, sort_keys=True, ignore_nan=True)}\n"
        self._lines.add(line.encode())
        for other in self._others:
            other(rounded, step)
        kind = stats["_type"].rstrip("_")
        values = [
            Summary.Value(tag=f"{kind}/{key}", simple_value=value)
            for key, value in stats.items()
            if isinstance(value, float)
        ]
        self._add_event(summary=Summary(value=values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Show a text in TensorBoard as it is, line by line."""
        code = "\n".join(f"    {line}" for line in text.splitlines())  # TensorBoard reads Markdown
        tensor = TensorProto(
            dtype=DT_STRING,
            string_val=[code.encode(errors="backslashreplace")],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag=tag, tensor=tensor, metadata=plugin)
        self._add_event(summary=Summary(value=[value]), step=step)

    def image(self, tag: str, png: bytes, size: tuple[int, int], step: int) -> None:
        """Show a PNG of (width, height) `size` in TensorBoard."""
        width, height = size
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
        value = Summary.Value(tag=tag, image=image)
        self._add_event(summary=Summary(value=[value]), step=step)

    def _add_event(self, **fields: Any) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._curves.add(record.getvalue())


def memory() -> str:
    """Return the resident memory of this process in gibibytes, or an empty text if unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return ""
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.2f}G"
