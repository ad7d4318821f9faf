"""A bounded folder of pieces of files, which all processes of a user on this machine share."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import struct
import tempfile
import time
import zlib
from pathlib import Path

from .errors import InputError, reason

HEADER = struct.Struct(">II")  # checksum and length
WHOLE = "-whole-"  # in the names of files that are not pieces
BEING_OPENED = 60  # seconds for which such a file is safe after its last use
COUNTER = "counter"  # holds how many bytes were written since the folder was last looked through

log = logging.getLogger("video_iresnet")


class DiskCache:
    """At most `limit` bytes in a folder; those that were not used for the longest time go first.

    A piece is never changed under its name. What a killed process leaves is not taken for a piece, and a
    damaged piece is not returned.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._fails = False

    def get(self, name: str) -> bytes | None:
        """Return a piece, or None if it is not there or damaged."""
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError:
            return None
        data = content[HEADER.size :]
        with contextlib.suppress(OSError):
            if content[: HEADER.size] == HEADER.pack(zlib.crc32(data), len(data)):
                os.utime(path)
                return data
            log.warning("%s is damaged and was removed from the cache", path)
            path.unlink()
        return None

    def put(self, name: str, data: bytes) -> None:
        """Store a piece. If that fails, as on a full disk, the log says so once."""
        if self._fails or HEADER.size + len(data) > self.limit:
            return
        try:
            self.make_room(HEADER.size + len(data))
            handle, temporary = tempfile.mkstemp(dir=self.folder)
            try:
                with open(handle, "wb") as file:
                    file.write(HEADER.pack(zlib.crc32(data), len(data)))
                    file.write(data)
                os.replace(temporary, self.folder / name)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            self._fails = True
            log.warning("the cache %s cannot be written: %s; going on without it", self.folder, reason(error))

    def make_room(self, size: int) -> None:
        """Remove what was not used for the longest time, so that `size` more bytes are within the limit.
        Raises OSError.

        The folder is looked through each time a tenth of the limit was written.
        """
        with open(os.open(self.folder / COUNTER, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            before = file.read(20)
            written = int(before) + size if before.isdigit() else self.limit
            if written > self.limit // 10:
                self._trim(self.limit - self.limit // 10 - size)
                written = size
            file.seek(0)
            file.write(b"%020d" % written)

    def _trim(self, goal: int) -> None:
        """Remove the files that were not used for the longest time until all have at most `goal` bytes."""
        files = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                if entry.name != COUNTER and entry.is_file():
                    files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for used, size, path in sorted(files):
            if total <= goal:
                break
            if WHOLE in path and time.time() - used < BEING_OPENED:
                continue
            Path(path).unlink(missing_ok=True)
            total -= size


def cache_folder() -> Path:
    """Return the folder of this user on this machine for what can be made again. Raises InputError."""
    default = Path(tempfile.gettempdir(), f"video_iresnet-{os.getuid()}")
    return own_folder(Path(os.environ.get("VIDEO_IRESNET_CACHE") or default))


def own_folder(path: Path) -> Path:
    """Create a folder that only this user can enter, or check that it is one. Raises InputError: what others
    can write is not to be trusted.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(path)
    except OSError as error:
        raise InputError(
            f"the cache folder {path} cannot be made: {reason(error)}; name another with VIDEO_IRESNET_CACHE"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InputError(
            f"the cache folder {path} can be entered by others than you; name another with "
            "VIDEO_IRESNET_CACHE, or `chmod 700` it if it is yours"
        )
    return path
