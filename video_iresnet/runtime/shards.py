"""Read members of tar files ("shards") by an index: `shards://FOLDER/shards.sqlite/MEMBER`. Nothing of a
shard is read but the bytes that are asked for. See prep/shards.py, which writes them.
"""

from __future__ import annotations

import os
import posixpath
import sqlite3
import threading
from typing import Any, NamedTuple
from urllib.parse import quote

from . import ranges
from .errors import InputError, reason
from .ranges import RangeFile, RangeHandler, Version, path_manager

INDEX = "shards.sqlite"
PREFIX = "shards://"
# The numbers in the header of the index: whose file it is ("vidS"), and of which format.
APPLICATION, FORMAT = 0x76696453, 1
REMEDY = "copy it again, or pack again with data_prep/shards.py"


class Member(NamedTuple):
    """Where the bytes of a file are. `sha256`: of these bytes."""

    shard: str
    offset: int
    size: int
    sha256: bytes


def root_of(folder: str) -> str:
    """Return the path that the members of a folder's shards are below."""
    return f"{PREFIX}{os.path.join(folder, INDEX)}"


def list_root(folder: str, prefix: str = "") -> str:
    """Return what the names in a list in `folder` are relative to: the folder's shards, if it has some, or
    else `prefix` below the folder.
    """
    packed = path_manager.exists(os.path.join(folder, INDEX))
    return root_of(folder) if packed else ranges.join(folder, prefix)


def join(root: str, name: str) -> str:
    """Return the path of what a list under `root` calls `name`; see ranges.join. Below shards, all names
    are those of members.
    """
    return f"{root}/{member_name(name)}" if root.startswith(PREFIX) else ranges.join(root, name)


def member_name(name: str) -> str:
    """Return the member for a name in a list: without the slash of an absolute path, as tar does, and with
    `_` for each folder further up, so that unpacking writes nowhere else.
    """
    parts = posixpath.normpath(name).lstrip("/").split("/")
    return "/".join("_" if part == ".." else part for part in parts)


def beside(path: str) -> str:
    """Return the path of a file that lies beside the shards as `path` says within them; other paths as they
    are.
    """
    if not path.startswith(PREFIX):
        return path
    folder, member = split(path)
    return os.path.join(folder, member)


def split(path: str) -> tuple[str, str]:
    """Return the folder and the member of a path."""
    folder, found, member = f"/{path.removeprefix(PREFIX)}".partition(f"/{INDEX}/")
    if not found or not member:
        raise FileNotFoundError(2, "No such file or directory", path)
    return folder[1:], member


class Index:
    """The index of a folder's shards, an SQLite file that is never changed, only replaced. For one thread.

    Raises FileNotFoundError if there is none, and InputError if it cannot be read.
    """

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, INDEX)
        self._folder = folder
        self._checked: set[int] = set()
        path = path_manager.get_local_path(self.path)
        os.stat(path)
        try:
            # Without locks, which network disks are slow in, or lack.
            self._connection = sqlite3.connect(
                f"file:{quote(os.fsencode(path))}?mode=ro&immutable=1", uri=True
            )
            header = [self._one(f"PRAGMA {number}") for number in ("application_id", "user_version")]
            if header != [(APPLICATION,), (FORMAT,)]:
                raise InputError(f"{self.path} is no index of shards that this version reads; {REMEDY}")
            rows = self._connection.execute("SELECT number, name, size FROM shards")
            self._shards = {number: (os.path.join(folder, name), size) for number, name, size in rows}
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def __len__(self) -> int:
        """The number of members."""
        try:
            row = self._one("SELECT COUNT(*) FROM members")
        except sqlite3.Error as error:
            raise self._damaged(error) from error
        return row[0] if row else 0

    def names(self) -> list[str]:
        """Return the names of the shards."""
        return sorted(os.path.basename(shard) for shard, _ in self._shards.values())

    def find(self, name: str) -> Member:
        """Return where a member is. Raises FileNotFoundError if there is no such member, and InputError if
        its shard is missing or incomplete.
        """
        try:
            row = self._one("SELECT shard, offset, size, sha256 FROM members WHERE name = ?", name)
        except sqlite3.Error as error:
            raise self._damaged(error) from error
        if row is None:
            raise FileNotFoundError(2, "No such file or directory", f"{name} of {self.path}")
        number, offset, size, sha256 = row
        shard, shard_size = self._shards[number]
        if number not in self._checked:
            self._check(shard, shard_size)
            self._checked.add(number)
        return Member(shard, offset, size, sha256)

    def _one(self, query: str, *values: str) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
        return row

    def _check(self, shard: str, expected: int) -> None:
        try:
            size = ranges.version_of(shard).size
        except OSError as error:
            raise InputError(f"{shard}, which {self.path} names: {reason(error)}; {REMEDY}") from error
        if size != expected:
            raise InputError(f"{shard} has {size} bytes, but {self.path} says {expected}; {REMEDY}")

    def _damaged(self, error: sqlite3.Error) -> InputError:
        return InputError(f"{self.path} cannot be read: {reason(error)}; {REMEDY}")


class _Opened(threading.local):
    """The indices that a thread has opened. A connection must not be used by others, or after a fork."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.indices: dict[str, Index] = {}


_opened = _Opened()


def find(path: str) -> Member:
    """Return where the member of a path is; see Index."""
    if _opened.process != os.getpid():
        _opened.__init__()  # type: ignore[misc]
    folder, name = split(path)
    index = _opened.indices.get(folder)
    if index is None:
        index = _opened.indices[folder] = Index(folder)
    return index.find(name)


class MemberFile(RangeFile):
    """A member of a shard, which is opened when something is read."""

    def __init__(self, path: str, member: Member) -> None:
        super().__init__(path, Version(member.size, member.sha256.hex()))
        self._member = member
        self._shard: int | RangeFile | None = None

    def read_at(self, start: int, size: int) -> bytes:
        shard, start = self._member.shard, self._member.offset + start
        try:
            if self._shard is None:
                ranged = ranges.is_ranged(shard)
                self._shard = ranges.open_range(shard) if ranged else os.open(shard, os.O_RDONLY)
            if isinstance(self._shard, RangeFile):
                return self._shard.read_at(start, size)
            data = os.pread(self._shard, size, start)
            while len(data) < size:  # a network disk may give less at a time
                more = os.pread(self._shard, size - len(data), start + len(data))
                if not more:
                    raise InputError(f"{shard} ends before byte {start + size}; {REMEDY}")
                data += more
            return data
        except OSError as error:
            raise InputError(f"cannot read {shard}: {reason(error)}") from error

    def close(self) -> None:
        shard, self._shard = self._shard, None
        if isinstance(shard, RangeFile):
            shard.close()
        elif shard is not None:
            os.close(shard)
        super().close()


class ShardHandler(RangeHandler):
    """Paths of members of shards."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def open_range(self, path: str) -> RangeFile:
        return MemberFile(path, find(path))

    def _exists(self, path: str, **kwargs: object) -> bool:
        try:
            find(path)
        except FileNotFoundError:
            return False
        return True


ranges.register(ShardHandler())
