"""Remember the packets of videos, so that opening a video again reads no more than its header.

An index is an SQLite file, whose pages all processes of a machine share. Names are hashed and packets
compressed: 240,000 videos of ten seconds take less than 300 MB.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ...runtime.disk_cache import cache_folder, own_folder
from ...runtime.errors import InputError, reason
from ...runtime.ranges import Version
from ...runtime.storage import path_manager
from .container import Packets
from .packets import pack, unpack

FILE_NAME = "packets.sqlite"
# The numbers in the header of the file: whose it is ("vidP"), and of which format.
APPLICATION, FORMAT = 0x76696450, 1
SCHEMA = "CREATE TABLE packets (name BLOB PRIMARY KEY, checksum BLOB NOT NULL, packed BLOB NOT NULL)"
PAGE = 16384  # bytes, of which entries of 1000 leave little empty
LARGEST = 2**30  # bytes of entries in a machine's index, which is begun anew then
LONGEST_WAIT = 5.0  # seconds, for other processes that write

log = logging.getLogger("video_iresnet")


class Entry(NamedTuple):
    """The packed packets of a version of a file."""

    path: str
    version: Version
    packed: bytes


class IndexFile:
    """An SQLite file of entries, opened at each call, since processes may be forked in between.

    `folder`: that of a data set, to which the names of its videos are relative. Such a file is read without
    locks, which network disks are slow in, or lack; the checksums show what was written meanwhile.
    """

    def __init__(self, path: str | Path, folder: str = "") -> None:
        self.path = str(path)
        self.folder = folder if "://" in folder or not folder else os.path.abspath(folder)

    def find(self, files: Sequence[tuple[str, Version]]) -> list[bytes | None]:
        """Return the packed packets of these versions of files, where they are known. Raises sqlite3.Error,
        or OSError.
        """
        try:
            size = os.path.getsize(self.path)
        except FileNotFoundError:
            size = 0
        if not size:
            return [None] * len(files)
        with closing(self._connect("mode=ro&immutable=1" if self.folder else "mode=rw")) as connection:
            _check_header(connection)
            return [self._find(connection, path, version) for path, version in files]

    def add(self, entries: Iterable[Entry]) -> None:
        """Store entries, all or none. Raises sqlite3.Error."""
        with closing(self._connect("mode=rwc")) as connection:
            if not self.folder:
                connection.execute("PRAGMA synchronous = OFF")  # a killed process does no harm even so
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                if not _number(connection, "schema_version"):
                    connection.execute(SCHEMA)
                    connection.execute(f"PRAGMA application_id = {APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {FORMAT}")
                _check_header(connection)
                pages = _number(connection, "page_count") - _number(connection, "freelist_count")
                if not self.folder and pages * _number(connection, "page_size") > LARGEST:
                    connection.execute("DELETE FROM packets")
                for path, version, packed in entries:
                    name = self._name(path)
                    row = (name, _checksum(name, version, packed), packed)
                    connection.execute("REPLACE INTO packets VALUES (?, ?, ?)", row)

    def _connect(self, options: str) -> sqlite3.Connection:
        address = f"file:{quote(os.fsencode(self.path))}?{options}"
        connection = sqlite3.connect(address, uri=True, timeout=LONGEST_WAIT, isolation_level=None)
        connection.execute("PRAGMA trusted_schema = OFF")
        return connection

    def _find(self, connection: sqlite3.Connection, path: str, version: Version) -> bytes | None:
        name = self._name(path)
        row = connection.execute("SELECT checksum, packed FROM packets WHERE name = ?", (name,)).fetchone()
        if row is None or not isinstance(row[1], bytes) or row[0] != _checksum(name, version, row[1]):
            return None
        return row[1]

    def _name(self, path: str) -> bytes:
        """Return the name of a file's entry: a hash of its path, below the folder where it is there. The path
        of a shard's member has that of the shard behind its `://`.
        """
        places = [path, path.partition("://")[2]] if "://" in path else [path]
        places = [place if "://" in place else os.path.abspath(place) for place in places]
        below = [place for place in places if self.folder and place.startswith(f"{self.folder}/")]
        name = below[0][len(self.folder) + 1 :] if below else places[0]
        return blake2b(os.fsencode(name), digest_size=16).digest()


class PacketIndex:
    """What is known of the packets of videos: in this machine's index, to which a video is added when it is
    first opened, and in that beside a data set, which is only read.

    An index that cannot be read or written is left alone from then on, with a note.
    """

    def __init__(self, folder: str = "") -> None:
        self._readable: list[IndexFile] = []
        with suppress(InputError):
            self._readable.append(IndexFile(own_folder(cache_folder() / "packets") / FILE_NAME))
        self._writable = self._readable[:]
        path = os.path.join(folder, FILE_NAME)
        if folder and path_manager.exists(path):
            self._readable.append(IndexFile(path_manager.get_local_path(path), folder))

    def find(self, path: str, version: Version) -> Packets | None:
        """Return the packets of this version of a file, if they are known."""
        for file in self._readable[:]:
            with _or_leave(file, self._readable):
                (packed,) = file.find([(path, version)])
                if packed is not None:
                    with suppress(ValueError):
                        return unpack(packed)
        return None

    def add(self, path: str, version: Version, packets: Packets) -> None:
        """Add a file to this machine's index, whatever the other one says."""
        for file in self._writable[:]:
            with _or_leave(file, self._writable):
                file.add([Entry(path, version, pack(packets))])


@contextmanager
def _or_leave(file: IndexFile, files: list[IndexFile]) -> Iterator[None]:
    """Remove a file that fails from those that are used. One of this machine that is damaged is deleted."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if type(error) is sqlite3.DatabaseError and not file.folder:  # not its subclasses: locked, full
            with suppress(OSError):
                os.unlink(file.path)
                return
        files.remove(file)
        log.warning("%s is left alone: %s; videos are read without", file.path, reason(error))


def _number(connection: sqlite3.Connection, name: str) -> int:
    number: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return number


def _check_header(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError if the file is another one."""
    if (_number(connection, "application_id"), _number(connection, "user_version")) != (APPLICATION, FORMAT):
        raise sqlite3.DatabaseError("it is no index of packets that this version reads")


def _checksum(name: bytes, version: Version, packed: bytes) -> bytes:
    return blake2b(repr((name, *version)).encode() + packed, digest_size=8).digest()
