"""Write the index of packets beside the videos of a data set."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

from ..data.decode.container import VideoFile
from ..data.decode.image import is_image
from ..data.decode.packet_index import FILE_NAME, Entry, IndexFile
from ..data.decode.packets import pack
from ..data.decode.reader import DecodeError
from ..runtime.errors import InputError, reason
from ..runtime.ranges import Version, version_of
from .jobs import run_jobs

AT_ONCE = 1000  # videos of a transaction


def index_packets(
    folder: Path, paths: Sequence[str], *, workers: int, ray_address: str | None = None
) -> None:
    """Add the packets of videos that it does not know to the index in `folder`, where a run finds them that
    has its lists there; see run_jobs. Pictures, and videos that cannot be read, are left out.

    Raises InputError if the file cannot be written, or is another one.
    """
    paths = [path for path in dict.fromkeys(paths) if not is_image(path)]
    if not paths:
        return
    file = IndexFile(folder / FILE_NAME, str(folder))
    with ThreadPoolExecutor(32) as pool:  # on a network disk each stat takes milliseconds
        versions = pool.map(_version, paths, chunksize=256)
        there = [(path, version) for path, version in zip(paths, versions, strict=True) if version]
    try:
        # Rolls back what a killed process left, and fails before the work if it cannot be written.
        file.add([])
        known = file.find(there)
        new = [path for (path, _), packed in zip(there, known, strict=True) if packed is None]
        work = run_jobs(_entry, new, workers=workers, ray_address=ray_address, description="indexing packets")
        with closing(work):
            entries = (entry for _, entry in work if entry is not None)
            while batch := list(islice(entries, AT_ONCE)):
                file.add(batch)
    except (sqlite3.Error, OSError) as error:
        raise InputError(
            f"cannot write {file.path}: {reason(error)}; delete it if it is damaged, and make room for it"
        ) from error


def _version(path: str) -> Version | None:
    try:
        return version_of(path)
    except OSError:
        return None


def _entry(path: str) -> Entry | None:
    try:
        with VideoFile(path) as video:
            return Entry(path, video.version, pack(video.scan()))
    except DecodeError:
        return None
