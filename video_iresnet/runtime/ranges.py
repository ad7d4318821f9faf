"""Files that are read in byte ranges, such as members of shards and objects of a store, by way of iopath."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from iopath.common.file_io import PathHandler, PathManagerFactory

path_manager = PathManagerFactory.get()


class Version(NamedTuple):
    """What tells a file from a changed one: its size in bytes, and when it was written, in the words of where
    it lies.
    """

    size: int
    written: str


class RangeFile(io.RawIOBase):
    """A file of which only what is asked for is read. Subclasses read in `read_at`."""

    def __init__(self, name: str, version: Version) -> None:
        self.name = name
        self.version = version
        self._position = 0

    def read_at(self, start: int, size: int) -> bytes:
        """Return exactly these bytes, which are within the file. Raises OSError or InputError."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.version.size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to byte {base + offset} of {self.name}")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.version.size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if not size:
            return b""
        data = self.read_at(self._position, size)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Input:
    """A RangeFile for a library to read from. It ends at a failure, which is kept as `error`: libraries take
    errors for the end of the file, or print them.
    """

    def __init__(self, file: RangeFile) -> None:
        self.name, self.seek, self.tell, self.close = file.name, file.seek, file.tell, file.close
        self._read = file.read
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        if self.error is None:
            try:
                return self._read(size)
            except Exception as error:
                self.error = error
        return b""

    def check(self) -> None:
        """Raise the failure, if there was one."""
        if self.error is not None:
            raise self.error


class RangeHandler(PathHandler):  # type: ignore[misc]
    """A kind of paths whose files are RangeFiles. Subclasses open them in `open_range`."""

    def open_range(self, path: str) -> RangeFile:
        """Raises FileNotFoundError, other OSErrors, or InputError."""
        raise NotImplementedError

    def prepare(self, paths: Sequence[str]) -> None:
        """Prepare for questions on many files, which are asked one by one. Raises InputError."""

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        if mode not in ("r", "rb"):
            raise OSError(f"cannot write {path}; it can only be read")
        file = self.open_range(path)
        if mode == "rb":
            return file
        return io.TextIOWrapper(io.BufferedReader(file), **kwargs)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            self.open_range(path).close()
        except FileNotFoundError:
            return False
        return True

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path)


_handlers: dict[str, RangeHandler] = {}  # by prefix


def register(handler: RangeHandler) -> None:
    """Let the path manager open the handler's paths."""
    path_manager.register_handler(handler)
    _handlers.update(dict.fromkeys(handler._get_supported_prefixes(), handler))


def is_ranged(path: str) -> bool:
    """Whether a path is read in ranges; others are files of a disk, or copied there by iopath."""
    return path.startswith(tuple(_handlers))


def open_range(path: str) -> RangeFile:
    """Open a path for which `is_ranged` holds. Raises OSError or InputError."""
    file = path_manager.open(path, "rb")
    assert isinstance(file, RangeFile)
    return file


def open_bytes(path: str) -> BinaryIO:
    """Open any file for reading. Raises OSError or InputError."""
    return (
        cast(BinaryIO, open_range(path)) if is_ranged(path) else open(path_manager.get_local_path(path), "rb")
    )


def version_of(path: str) -> Version:
    """Return the size and time of any file. Raises OSError or InputError."""
    if is_ranged(path):
        with open_range(path) as file:
            return file.version
    status = os.stat(path_manager.get_local_path(path))
    return Version(status.st_size, str(status.st_mtime_ns))


def prepare(paths: Sequence[str]) -> None:
    """Prepare for questions on many files of any kind. Raises InputError."""
    for handler in set(_handlers.values()):
        prefixes = tuple(prefix for prefix, other in _handlers.items() if other is handler)
        if mine := [path for path in paths if path.startswith(prefixes)]:
            handler.prepare(mine)


def join(root: str, name: str) -> str:
    """Return the path of what a list under `root` calls `name`: relative to it, unless it is absolute or an
    address that is read in ranges.
    """
    return name if is_ranged(name) else os.path.join(root, name)
