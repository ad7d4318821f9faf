"""Stored views: the outputs of a network for each view of a test, written during the test.

Each process appends to its own SQLite file, whole groups of videos at a time, so that a killed test can be
continued. The name of the folder is a fingerprint of everything that the numbers depend on.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import shutil
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.labels import Label
from ..data.records import Record
from ..runtime.errors import InputError, reason

FORMAT = 1  # of the files
DTYPES = {"float32": "<f4", "float16": "<f2"}
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS about (json TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS videos (record INTEGER PRIMARY KEY, name TEXT NOT NULL, "
    "label INTEGER NOT NULL, error TEXT NOT NULL, checksum INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS arrays (record INTEGER NOT NULL, frames TEXT NOT NULL, name TEXT NOT NULL, "
    "dtype TEXT NOT NULL, shape TEXT NOT NULL, numbers BLOB NOT NULL, PRIMARY KEY (record, frames, name))",
)
PERIOD = 1.0  # seconds between two writes
LONGEST_WAIT = 60.0  # seconds, for someone who is reading the file

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
"""What is stored of a video's views, by name; (clips, crops, ...) each."""


class VideoOutputs(NamedTuple):
    """What is kept of a video for each order of frames ("" is their own); nothing, and the reason, where it
    could not be read or an output is not finite.
    """

    record: int
    outputs: Mapping[str, Arrays]
    error: str


class StoredVideo(NamedTuple):
    """The same with the video's name and label."""

    record: int
    name: str
    label: Label
    outputs: Mapping[str, Arrays]
    error: str


def weights_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors with their names and sizes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint(about: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits for a description that JSON can hold."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


class ViewStore:
    """The views of one test, in FOLDER/FINGERPRINT.

    `about`: what their numbers depend on, `num_videos` and `dtype` (a key of DTYPES) among it. Iterating
    gives the videos in the order of their records, one at a time. All methods raise InputError, with the
    file, where one cannot be read or written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.about = about
        self.folder = folder / fingerprint(about)

    @classmethod
    def open(cls, folder: Path) -> ViewStore:
        """Open the views in an existing folder FOLDER/FINGERPRINT."""
        for path in _files(folder):
            with _reading(path, folder.name) as (_, about):
                if about:
                    return cls(folder.parent, about)
        raise InputError(
            f"{folder} holds no views; run the test first, with TEST.STORED_VIEWS other than off"
        )

    def append(self, rank: int, videos: Sequence[VideoOutputs], records: Sequence[Record]) -> None:
        """Append videos to the file of a process, all or none. No two processes may have the same rank.
        Arrays of one number a view stay float32; others take the dtype of the store.
        """
        path = self.folder / f"process_{rank}.sqlite"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, timeout=LONGEST_WAIT, isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE")
                for line in SCHEMA:
                    database.execute(line)
                about = json.dumps(self.about)
                database.execute("INSERT INTO about SELECT ? WHERE NOT EXISTS (SELECT * FROM about)", [about])
                for video in videos:
                    record = records[video.record]
                    arrays = list(_rows(video, DTYPES[self.about["dtype"]]))
                    row = (video.record, record.name, _stored(record.label), video.error)
                    database.execute(
                        "INSERT INTO videos VALUES (?, ?, ?, ?, ?)", (*row, _checksum(row, arrays))
                    )
                    database.executemany("INSERT INTO arrays VALUES (?, ?, ?, ?, ?, ?)", arrays)
                database.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"cannot write {path}: {reason(error)}; what was stored before is kept, and the same command "
                "goes on"
            ) from error

    def records(self) -> list[int]:
        """Return the stored records in order. Raises InputError if one is stored twice."""
        counts: Counter[int] = Counter()
        for path in _files(self.folder):
            with _reading(path, self.folder.name) as (database, about):
                if about:
                    counts.update(record for (record,) in database.execute("SELECT record FROM videos"))
        wrong = [
            record for record, count in counts.items() if count > 1 or record >= self.about["num_videos"]
        ]
        if wrong:
            raise InputError(
                f"{self.folder} holds {len(wrong)} videos twice, or that are not in the list, number "
                f"{min(wrong)} first; remove the folder and test again"
            )
        return sorted(counts)

    def check_complete(self) -> None:
        """Raise InputError unless each video is stored exactly once."""
        missing = self.about["num_videos"] - len(self.records())
        if missing:
            raise InputError(
                f"{missing} of {self.about['num_videos']} videos are not in {self.folder}; run the test "
                "again, it continues (all its processes must see one OUTPUT_DIR)"
            )

    def __iter__(self) -> Iterator[StoredVideo]:
        streams = [self._stream(path) for path in _files(self.folder)]
        return heapq.merge(*streams, key=lambda video: video.record)

    def _stream(self, path: Path) -> Iterator[StoredVideo]:
        with _reading(path, self.folder.name) as (database, about):
            for *row, checksum in database.execute("SELECT * FROM videos ORDER BY record") if about else ():
                record, name, label, error = row
                label = tuple(json.loads(label)) if isinstance(label, str) else label
                arrays = database.execute(
                    "SELECT * FROM arrays WHERE record = ? ORDER BY frames, name", [record]
                ).fetchall()
                if _checksum(row, arrays) != checksum:
                    raise sqlite3.DatabaseError(f"the views of {name} have another checksum")
                outputs: dict[str, dict[str, NDArray[Any]]] = {}
                for _, frames, array, dtype, shape, numbers in arrays:
                    values = np.frombuffer(numbers, dtype).reshape(json.loads(shape))
                    outputs.setdefault(frames, {})[array] = values
                yield StoredVideo(record, name, label, outputs, error)

    def forget_failed(self, group_size: int) -> None:
        """Delete the groups in which a video failed, so that they are tested again."""
        for path in _files(self.folder):
            with _reading(path, self.folder.name) as (database, about):
                for table in ("arrays", "videos") if about else ():
                    database.execute(
                        f"DELETE FROM {table} WHERE record / :size IN "
                        "(SELECT record / :size FROM videos WHERE error != '')",
                        {"size": group_size},
                    )
                database.commit()

    def writer(self, rank: int, records: Sequence[Record]) -> ViewWriter:
        return ViewWriter(self, rank, records)

    def remove(self) -> None:
        """Delete the views, and the parent folder if it is empty then."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are there
            self.folder.parent.rmdir()


class ViewWriter:
    """Appends whole groups of videos about once a second, as a safe write takes tens of milliseconds."""

    def __init__(self, store: ViewStore, rank: int, records: Sequence[Record]) -> None:
        self.store, self.rank, self.records = store, rank, records
        self._waiting: list[VideoOutputs] = []
        self._written = time.monotonic()

    def add(self, group: Sequence[VideoOutputs]) -> None:
        self._waiting += group
        if time.monotonic() - self._written >= PERIOD:
            self.flush()

    def flush(self) -> None:
        """Append what is not written yet."""
        self.store.append(self.rank, self._waiting, self.records)
        self._waiting, self._written = [], time.monotonic()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("process_*.sqlite"))


@contextmanager
def _reading(path: Path, name: str) -> Iterator[tuple[sqlite3.Connection, dict[str, Any]]]:
    """Open a file of the store `name` for reading, with its description, which is empty if a process was
    killed while creating the file. Incomplete writes are rolled back.
    """
    try:
        uri = f"file:{quote(str(path))}?mode=rw"  # where it cannot be written, it is opened to read alone
        with closing(sqlite3.connect(uri, uri=True, timeout=LONGEST_WAIT)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            is_new = not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            about = {} if is_new else json.loads(*database.execute("SELECT json FROM about").fetchone())
            if about and fingerprint(about) != name:
                raise InputError(
                    f"{path} holds views of another test, or is damaged; remove it and run the test again"
                )
            yield database, about
    except InputError:
        raise
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); remove it and run the test again, which goes on with its videos"
        ) from error


def _stored(label: Label) -> int | str:
    """Return a label as the files have it: many are a list in JSON, which SQLite takes for no number."""
    return label if isinstance(label, int) else json.dumps(label)


def _rows(video: VideoOutputs, dtype: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a video in the table of arrays, in the order of reading."""
    for frames, arrays in sorted(video.outputs.items()):
        for name, array in sorted(arrays.items()):
            stored = np.ascontiguousarray(array, dtype if array.ndim > 2 else DTYPES["float32"])
            shape = json.dumps(stored.shape)
            yield video.record, frames, name, stored.dtype.str, shape, stored.tobytes()


def _checksum(row: Sequence[Any], arrays: Sequence[Sequence[Any]]) -> int:
    """Return a checksum, which SQLite lacks."""
    checksum = zlib.crc32(json.dumps(list(row)).encode())
    for *names, numbers in arrays:
        checksum = zlib.crc32(numbers, zlib.crc32(json.dumps(names).encode(), checksum))
    return checksum
