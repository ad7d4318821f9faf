"""Unpack archives of videos safely and resumably, without joining those that come in parts."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from uuid import uuid4

from tqdm import tqdm

from ..runtime.errors import InputError, reason
from .lists import held_folder

CHUNK = 1 << 20
COMPRESSIONS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}  # by the first bytes
DAMAGE = (
    EOFError,
    zlib.error,
    lzma.LZMAError,
    OSError,
    tarfile.TarError,
    zipfile.BadZipFile,
)  # gzip and bz2 raise OSErrors
# Videos hardly compress; archives that expand much more are meant to fill a disk.
MAX_EXPANSION = 20.0
PARTIAL = ".partial"  # where incomplete files and folders are


class Unpacked(NamedTuple):
    """The number of files written, and of those that existed before."""

    written: int
    kept: int


def md5_of(path: Path) -> str:
    """Return the MD5 of a file, in hexadecimal digits. Raises OSError."""
    digest = hashlib.md5(usedforsecurity=False)
    with (
        path.open("rb") as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, disable=None) as progress,
    ):
        progress.set_description(f"MD5 of {path.name}")
        while block := file.read(CHUNK):
            digest.update(block)
            progress.update(len(block))
    return digest.hexdigest()


def group_parts(paths: Sequence[Path]) -> list[list[Path]]:
    """Group archives with their parts: `x-00 x-01` and `x.tar.gz.1 x.tar.gz.2` are one each. Raises
    InputError for a gap or no file.
    """
    archives: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path in paths:
        if not path.is_file():
            raise InputError(
                f"{path} is not a file; name the archives, e.g. --archives "
                "downloads/20bn-something-something-v2-*"
            )
        match = re.fullmatch(r"(.+)[-._](?:part)?(\d{1,4})", str(path))
        archives[match[1] if match else str(path)].append((int(match[2]) if match else 0, path))
    for name, parts in archives.items():
        parts.sort()
        numbers = [number for number, _ in parts]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
            raise InputError(
                f"the parts of {name} are numbered {', '.join(map(str, numbers))}; expected all of them, "
                "from 0 or 1 on"
            )
    return [[path for _, path in archives[name]] for name in sorted(archives)]


def unpack(
    parts: Sequence[Path], folder: Path, *, max_expansion: float = MAX_EXPANSION, inner: bool = False
) -> Unpacked:
    """Unpack a tar (also compressed or in parts) or a zip into a folder. Existing files are kept, so a
    stopped run can continue. `inner`: of each x.tar in a tar, the members are unpacked into a folder x.

    Raises InputError for an archive that is damaged or incomplete, contains anything but files inside the
    folder, or unpacks to more than `max_expansion` times its size; for an existing file of another size; if
    another process unpacks there; and if writing fails.
    """
    size = sum(part.stat().st_size for part in parts)
    limit = _Limit(parts[0], int(max_expansion * size) + CHUNK, max_expansion)
    with (
        held_folder(folder),
        partial_folder(folder) as partial,
        tqdm(total=size, unit="B", unit_scale=True, disable=None) as progress,
    ):
        progress.set_description(parts[0].name)
        try:
            if len(parts) == 1 and zipfile.is_zipfile(parts[0]):
                return _unpack_zip(parts[0], folder, partial, progress, limit)
            return _unpack_tar(parts, folder, partial, progress, limit, inner)
        except DAMAGE as error:
            name = (
                f"{parts[0]} (with its {len(parts) - 1} further parts)" if len(parts) > 1 else str(parts[0])
            )
            if isinstance(error, EOFError | zipfile.BadZipFile) or "unexpected end" in str(error):
                raise InputError(
                    f"{name} is incomplete or damaged: {error}; download it again, what is unpacked is kept"
                ) from error
            # The checksum of a compressed tar comes last, after everything is written.
            raise InputError(
                f"{name} is damaged: {error}; download it again, and unpack into another folder: {folder} "
                "may hold damaged files"
            ) from error
        except (
            RuntimeError,
            NotImplementedError,
        ) as error:  # a zip with a password or an unknown compression
            raise InputError(
                f"{parts[0]} cannot be unpacked: {error}; unpack it with another program and leave "
                "--archives out"
            ) from error


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """Create an empty folder for incomplete files on the same disk, for one run at a time."""
    partial = folder / PARTIAL
    try:
        if partial.exists():
            # Moved before it is deleted: another writer fails then, instead of completing what
            # is half deleted.
            partial.rename(folder / f"{PARTIAL}-{uuid4().hex}")
        for left in folder.glob(f"{PARTIAL}-*"):
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {reason(error)}; name another folder") from error
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Limit(NamedTuple):
    """Return how many bytes an archive may unpack to."""

    archive: Path
    num_bytes: int
    times: float

    def check(self, num_bytes: int) -> None:
        if num_bytes > self.num_bytes:
            raise InputError(
                f"{self.archive} unpacks to more than {self.times:g} times its size; take another copy, or, "
                "where it can be trusted, give a larger --max-expansion"
            )


def _unpack_tar(
    parts: Sequence[Path], folder: Path, partial: Path, progress: tqdm[Any], limit: _Limit, inner: bool
) -> Unpacked:
    counts = [0, 0]
    with io.BufferedReader(_Joined(parts, progress), CHUNK) as joined:
        open_compressed = next(
            (function for magic, function in COMPRESSIONS.items() if joined.peek(8).startswith(magic)), None
        )
        stream = _TarStream(open_compressed(joined) if open_compressed else joined, limit)
        for target, source, size in _members(stream, folder, parts[0], inner):
            counts[_write(source, size, target, partial)] += 1
        while stream.read(CHUNK):  # to the end, where the checksum is
            pass
        if not stream.ended:
            raise EOFError("its end is missing")
    return Unpacked(counts[True], counts[False])


def _members(
    stream: IO[bytes] | _TarStream, folder: Path, path: Path, inner: bool
) -> Iterator[tuple[Path, IO[bytes], int]]:
    """Yield where each file of a tar goes, its bytes, and their number. `path`: for errors."""
    # Only read() of the stream is needed.
    with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            if member.isdir():
                continue
            if not member.isreg():
                raise InputError(
                    f"{member.name} in {path} is a link or a device; expected files alone, unpack "
                    "another copy"
                )
            source = archive.extractfile(member)
            assert source
            if inner and member.name.endswith(".tar"):
                yield from _members(
                    source, _target(folder, member.name.removesuffix(".tar"), path), path, False
                )
                continue
            target = _target(folder, member.name, path)
            if hasattr(tarfile, "data_filter"):  # a second check, since Python 3.10.12 and 3.11.4
                tarfile.data_filter(member, str(folder))
            yield target, source, member.size


def _unpack_zip(path: Path, folder: Path, partial: Path, progress: tqdm[Any], limit: _Limit) -> Unpacked:
    counts = [0, 0]
    with zipfile.ZipFile(path) as archive:
        # No more than the stated size of a member is read.
        limit.check(sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            if member.is_dir():
                continue
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                raise InputError(
                    f"{member.filename} in {path} is a link or a device; expected files alone, unpack "
                    "another copy"
                )
            target = _target(folder, member.filename, path)
            with archive.open(member) as source:
                counts[_write(source, member.file_size, target, partial)] += 1
            progress.update(member.compress_size)
    return Unpacked(counts[True], counts[False])


def _target(folder: Path, name: str, archive: Path) -> Path:
    """Return the path of a member. Raises InputError if it is outside of the folder, by its name or through
    an existing link.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    outside = not path.parts or path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:|.*\0", name)
    target = folder / path
    if outside or not target.parent.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{name!r} in {archive} would be written outside of {folder}; this archive is not to be trusted, "
            "take another copy"
        )
    if path.parts[0] == PARTIAL:
        raise InputError(
            f"{name!r} in {archive} has a name that is needed while unpacking; unpack it with another program"
        )
    return target


def _write(source: IO[bytes], size: int, target: Path, partial: Path) -> bool:
    """Write a member to a temporary name, then rename it; False if it exists. A kill leaves no incomplete
    file under its name.

    Files are not flushed one by one, which would take hours for 200,000 videos; after a power failure their
    sizes show what is missing.
    """
    if target.exists():
        if not target.is_file() or target.stat().st_size != size:
            raise InputError(
                f"{target} is there with another size than the {size:,} bytes in the archive and is not "
                "overwritten; move it away"
            )
        return False
    temporary = partial / "member"
    try:
        with temporary.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        if temporary.stat().st_size != size:
            raise EOFError(f"{target.name} ends too early")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(temporary, target)
    except OSError as error:
        if error.strerror is None:  # an error of the decompression
            raise
        raise InputError(
            f"cannot write {target}: {reason(error)}; make room and start again, what is unpacked is kept"
        ) from error
    return True


class _Joined(io.RawIOBase):
    """Several files read as one."""

    def __init__(self, paths: Sequence[Path], progress: tqdm[Any]) -> None:
        self._paths = list(paths)
        self._file: IO[bytes] | None = None
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._file is None:
                if not self._paths:
                    return 0
                self._file = self._paths.pop(0).open("rb")
            data = self._file.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                self._progress.update(len(data))
                return len(data)
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


class _TarStream:
    """A limited stream that knows whether it ended as a tar must; tarfile does not notice a missing end."""

    def __init__(self, stream: Any, limit: _Limit) -> None:
        self._stream = stream
        self._limit = limit
        self._num_bytes = 0
        self._tail = b""

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self._num_bytes += len(data)
        self._limit.check(self._num_bytes)
        self._tail = (self._tail + data)[-1024:] if len(data) < 1024 else data[-1024:]
        return data

    @property
    def ended(self) -> bool:
        """Two blocks of zeros."""
        return self._tail == bytes(1024)
