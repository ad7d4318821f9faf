"""The index of shards while they are written; runtime/shards.py reads it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import quote

from ..runtime.errors import InputError, reason
from ..runtime.shards import APPLICATION, FORMAT, INDEX
from ..runtime.storage import remove_leftovers
from .shard_files import Row

SCHEMA = (
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {FORMAT}",
    # `size` is NULL until the shard is complete.
    "CREATE TABLE shards (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER)",
    "CREATE TABLE members (name TEXT PRIMARY KEY, shard INTEGER NOT NULL, offset INTEGER NOT NULL, "
    "size INTEGER NOT NULL, mtime INTEGER NOT NULL, sha256 BLOB NOT NULL) WITHOUT ROWID",
)


class Catalogue:
    """The index of a folder, to which shards are added in a file beside it. That file takes the index's place
    in `finish`, so that readers never see a change; a killed run leaves it to the next one.

    The folder must be locked. All methods raise InputError where a file cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._final, self._draft, self._next = (
            folder / name for name in (INDEX, f".{INDEX}.draft", f".{INDEX}.next")
        )
        with self._errors():
            self._next.unlink(missing_ok=True)
            self._is_changed = self._draft.exists()
            if self._final.exists() and not self._draft.exists():
                shutil.copyfile(self._final, self._next)
                os.replace(self._next, self._draft)
            # The folder's lock is enough; SQLite's own are slow on network disks, or missing.
            uri = f"file:{quote(os.fsencode(self._draft))}?nolock=1"
            self._database = sqlite3.connect(uri, uri=True, isolation_level=None)
            header = [self._number(f"PRAGMA {key}") for key in ("application_id", "user_version")]
            if header == [0, 0] and not self._number("SELECT COUNT(*) FROM sqlite_schema"):
                with self._changing():
                    for line in SCHEMA:
                        self._database.execute(line)
            elif header != [APPLICATION, FORMAT]:
                raise InputError(
                    f"{self._final} is there and was not written by this script; name another --out"
                )
            rows = self._database.execute("SELECT name, size FROM shards").fetchall()
        self._complete = {name for name, size in rows if size is not None}
        self._begun = {name for name, size in rows if size is None}

    def __len__(self) -> int:
        """The number of members."""
        with self._errors():
            return self._number("SELECT COUNT(*) FROM members")

    def find(self, member: str) -> Row | None:
        """Return the row of a member, if there is one."""
        query = "SELECT name, offset, size, mtime, sha256 FROM members WHERE name = ?"
        with self._errors():
            row = self._database.execute(query, [member]).fetchone()
        return row and Row(*row)

    def begin(self, stems: Sequence[str]) -> list[str]:
        """Return the names of shards to write, one for each stem, such as val-00002.tar. Raises InputError if
        a file of such a name is there and is no incomplete shard of ours.
        """
        unused = {
            stem: filter(lambda name: name not in self._complete, map(f"{stem}-{{:05d}}.tar".format, count()))
            for stem in stems
        }
        names = [next(unused[stem]) for stem in stems]
        for name in names:
            if name not in self._begun and (self.folder / name).exists():
                raise InputError(
                    f"{self.folder / name} is there and was not written by this script; name another --out"
                )
        with self._errors(), self._changing():
            self._begun.update(names)
            new = [(name,) for name in names]
            self._database.executemany("INSERT OR IGNORE INTO shards (name) VALUES (?)", new)
        return names

    def complete(self, name: str, size: int, rows: Sequence[Row]) -> None:
        """Add the members of a shard, which has its name and `size` bytes."""
        with self._errors(), self._changing():
            self._database.execute("UPDATE shards SET size = ? WHERE name = ?", (size, name))
            number = self._number("SELECT number FROM shards WHERE name = ?", name)
            self._database.executemany(
                "INSERT INTO members VALUES (?, ?, ?, ?, ?, ?)",
                ((row.name, number, *row[1:]) for row in sorted(rows)),
            )
        self._is_changed = True
        self._begun.remove(name)
        self._complete.add(name)

    def remove_leftovers(self) -> None:
        """Delete what killed runs left of shards that are not complete."""
        with self._errors():
            remove_leftovers(self.folder, self._begun)

    def finish(self) -> None:
        """Put the index into its place, if shards were added, and delete shards that are not in it."""
        self.remove_leftovers()
        with self._errors():
            for name in self._begun:
                (self.folder / name).unlink(missing_ok=True)
            with self._changing():
                self._database.execute("DELETE FROM shards WHERE size IS NULL")
            if self._is_changed or not self._final.exists():
                self._database.execute("VACUUM INTO ?", [str(self._next)])
                with open(self._next, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(self._next, self._final)
            self._draft.unlink()

    def close(self) -> None:
        self._database.close()

    def _number(self, query: str, *values: str) -> int:
        return int(self._database.execute(query, values).fetchone()[0])

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep the changes of the block all, or none."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"the index {self._final} cannot be written: {reason(error)}") from error
