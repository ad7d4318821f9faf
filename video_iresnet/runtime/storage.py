"""Files: read through iopath, written atomically."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from . import shards, stores  # noqa: F401  # let the path manager open members of shards and addresses
from .errors import InputError, reason
from .ranges import path_manager as path_manager


@contextmanager
def open_text(path: str) -> Iterator[IO[str]]:
    """Open a text file (UTF-8, with or without a byte order mark) for reading.

    Raises InputError if it cannot be read or is not a regular file: a pipe or a device might never end.
    """
    if path_manager.exists(path) and not path_manager.isfile(path):
        raise InputError(f"{path} is no regular file (but a folder, a pipe or a device); name a text file")
    try:
        with path_manager.open(path, "r", encoding="utf-8-sig") as file:
            yield file
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not a valid path
        raise InputError(f"cannot read {path}: {reason(error)}") from error


def read_lines(path: str) -> list[str]:
    """Return the lines of a text file, with any line ends; see open_text."""
    with open_text(path) as file:
        return file.read().splitlines()


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under `path` when the block ends without an error; until then an existing file
    remains.

    Readers, also after a crash, see the old file or the new one. Raises InputError if writing fails.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        with os.fdopen(handle, mode) as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # see remove_leftovers
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {reason(error)}; what stood there before is untouched"
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


class Output:
    """A file for a library to write to. It keeps the error of a failed write, which PyAV may lose."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._write = file.write
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._write(data)
        except OSError as error:
            self.error = error
            raise


def append_whole(path: Path, data: bytes) -> None:
    """Append bytes to a file: all of them or, with an OSError, none."""
    with open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while data:  # a full disk accepts a part before the error
                data = data[file.write(data) :]
        except OSError:
            file.truncate(end)
            raise


def remove_leftovers(folder: str | Path, names: Collection[str] | None = None) -> None:
    """Delete what killed `atomic_write`s of these names, or of any, left in a folder, but not what another
    process is writing.
    """
    for entry in os.scandir(folder):
        match = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}\.partial", entry.name, re.DOTALL)
        if match and (names is None or match[1] in names) and not _is_being_written(entry.path):
            Path(entry.path).unlink(missing_ok=True)


def _is_being_written(path: str) -> bool:
    try:
        with open(path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # it is gone, or the file system has no locks
        pass
    return False


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder for this process while the block runs; kill -9 releases it too.

    Raises InputError, naming the process that holds it, if it is locked.
    """
    try:
        file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"cannot write {folder / '.lock'}: {reason(error)}; name another folder") from error
    with file:
        try:
            # Unlike with flock, forked workers, which may outlive the parent, do not inherit this lock.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            message = f"{folder} is in use by {holder}; wait until it ends, or name another folder"
            raise InputError(message) from error
        except OSError:
            pass  # a file system without locks
        with contextlib.suppress(OSError):  # a full disk: the lock holds nevertheless
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def make_output_dir(path: str) -> Path:
    """Create the folder, unless it exists, and check that it is writable."""
    if not path.strip():
        raise InputError("OUTPUT_DIR is empty; name the folder where the run should write")
    if re.match(r"\w+://", path):
        raise InputError(f"OUTPUT_DIR {path} is an address; runs write to a folder of this machine, name one")
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(
            f"OUTPUT_DIR {path} cannot be written to: {reason(error)}; name another folder with OUTPUT_DIR"
        ) from error
    return directory
