"""Write one tar file of shards, and check one against its index."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, BinaryIO, NamedTuple

from ..data.labels import Label
from ..runtime import ranges
from ..runtime.errors import InputError, reason
from ..runtime.shards import Index
from ..runtime.storage import atomic_write

BLOCK = 512  # bytes; tar files consist of such blocks
END = b"\0" * 2 * BLOCK
PIECE = 2**20  # bytes that are read at a time


class Row(NamedTuple):
    """A member of a shard: its first byte, its bytes, when its source was changed (in seconds since 1970),
    and the SHA-256 of its bytes.
    """

    name: str
    offset: int
    size: int
    mtime: int
    sha256: bytes


class Source(NamedTuple):
    """A video of a list, or with `num_frames` a folder of frames: then `path` and `member` are patterns."""

    name: str
    label: Label
    path: str
    member: str
    first_frame: int = 0
    num_frames: int = 0
    done: frozenset[str] = frozenset()  # members that are packed already

    def files(self) -> list[tuple[str, str]]:
        """Return the paths and members of its files, without those that are done."""
        if not self.num_frames:
            return [(self.path, self.member)]
        numbers = range(self.first_frame, self.first_frame + self.num_frames)
        files = [(self.path % number, self.member % number) for number in numbers]
        return [(path, member) for path, member in files if member not in self.done]


class Status(NamedTuple):
    """What is known of a file before it is read: bytes, seconds since 1970, permissions."""

    size: int
    mtime: int
    mode: int


class Job(NamedTuple):
    """A shard to write."""

    target: str
    sources: list[Source]


class Written(NamedTuple):
    """A shard that was written: its rows in the index, its bytes, and reasons for what was left out, by the
    member of the source.
    """

    rows: list[Row]
    size: int
    failures: dict[str, str]


class UnreadableError(Exception):
    """A file that cannot be packed."""


def look(source: Source) -> list[Status | str]:
    """Return the status of each file of a source, or why it cannot be read."""
    found: list[Status | str] = []
    for path, _ in source.files():
        try:
            found.append(status_of(path))
        except OSError as error:
            found.append(reason(error))
    return found


def status_of(path: str) -> Status:
    """Look at a file. Raises OSError."""
    if ranges.is_ranged(path):
        return Status(ranges.version_of(path).size, 0, 0o644)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no regular file")
    return Status(status.st_size, int(status.st_mtime), stat.S_IMODE(status.st_mode) & 0o777)


def write_shard(job: Job) -> Written:
    """Write a shard, which gets its name when all of it was read back. Raises InputError if it cannot be
    written.
    """
    failures: dict[str, str] = {}

    def append(file: IO[bytes]) -> Iterator[Row]:
        for source in job.sources:
            for path, member in source.files():
                try:
                    yield _append_file(file, path, member)
                except UnreadableError as error:
                    failures.setdefault(source.member, str(error))

    rows, size = _write(job.target, append)
    return Written(rows, size, failures)


def write_members(target: str, members: Iterable[tuple[str, bytes]]) -> Written:
    """Write a shard of members, by their names and bytes; see write_shard."""

    def append(file: IO[bytes]) -> Iterator[Row]:
        for name, data in members:
            yield _append(file, name, Status(len(data), 0, 0o644), io.BytesIO(data))

    rows, size = _write(target, append)
    return Written(rows, size, {})


def _write(target: str, append: Callable[[IO[bytes]], Iterable[Row]]) -> tuple[list[Row], int]:
    """Write a shard to which `append` adds members; return its rows and bytes."""
    with atomic_write(target, "w+b") as file:
        rows = list(append(file))
        file.write(END)
        file.write(b"\0" * (-file.tell() % tarfile.RECORDSIZE))
        size = file.tell()
        file.flush()
        os.fsync(file.fileno())
        with contextlib.suppress(OSError, AttributeError):  # so that it is read from the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for row in rows:
            if checksum(file, row.offset, row.size) != row.sha256:
                raise InputError(
                    f"{row.name} was not written to {target} as it was read; the disk may be damaged"
                )
    return rows, size


def _append_file(file: IO[bytes], path: str, member: str) -> Row:
    """Append a file to a shard. Raises UnreadableError, and OSError if the shard cannot be written."""
    try:
        status, source = status_of(path), ranges.open_bytes(path)
    except OSError as error:
        raise UnreadableError(reason(error)) from error
    with source:
        return _append(file, member, status, source)


def _append(file: IO[bytes], member: str, status: Status, source: BinaryIO) -> Row:
    start = file.tell()
    entry = tarfile.TarInfo(member)
    entry.size, entry.mtime, entry.mode = status
    file.write(entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
    offset, digest = file.tell(), hashlib.sha256()
    for piece in _pieces(source):
        digest.update(piece)
        file.write(piece)
    if file.tell() - offset != status.size:
        file.seek(start)
        file.truncate()
        raise UnreadableError("it changed while it was read")
    file.write(b"\0" * (-status.size % BLOCK))
    return Row(member, offset, status.size, status.mtime, digest.digest())


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    while True:
        try:
            piece = source.read(PIECE)
        except OSError as error:
            raise UnreadableError(reason(error)) from error
        if not piece:
            return
        yield piece


def sha256_of(path: str) -> bytes:
    """Return the SHA-256 of a file's bytes. Raises InputError."""
    try:
        with ranges.open_bytes(path) as file:
            return checksum(file, 0, ranges.version_of(path).size)
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error


def checksum(file: IO[bytes], offset: int, size: int) -> bytes:
    """Return the SHA-256 of `size` bytes of a file, or of those that are there."""
    digest = hashlib.sha256()
    file.seek(offset)
    while size and (piece := file.read(min(size, PIECE))):
        digest.update(piece)
        size -= len(piece)
    return digest.digest()


class Check(NamedTuple):
    """A shard to check: its folder and name."""

    folder: str
    shard: str


def check_shard(job: Check) -> tuple[int, list[str]]:
    """Read a shard as `tar` does; return the number of its members that are as the index says, and what is
    wrong with others.
    """
    path, index = os.path.join(job.folder, job.shard), Index(job.folder)
    num_right, problems = 0, []
    try:
        with open(path, "rb") as file, tarfile.open(path, "r:") as tar:
            for entry in tar:
                member = index.find(entry.name)
                if (member.shard, member.offset, member.size) != (path, entry.offset_data, entry.size):
                    problems.append(f"{entry.name} is not where the index says")
                elif checksum(file, member.offset, member.size) != member.sha256:
                    problems.append(f"{entry.name} has other bytes than were packed")
                else:
                    num_right += 1
    except (InputError, OSError, tarfile.TarError) as error:
        problems.append(reason(error))
    return num_right, problems
