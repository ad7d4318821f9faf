"""Files at addresses (s3://, https://, http://): read in blocks with patience, and kept in a local cache.

Settings are environment variables, as those of AWS's tools are, because they belong to a machine and not to a
recipe: VIDEO_IRESNET_CACHE is the folder (by default one of this user under that of temporary files), and
VIDEO_IRESNET_CACHE_GB its size (by default 10; 0: only files that are needed as a whole).
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import itertools
import logging
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .disk_cache import WHOLE, DiskCache, cache_folder
from .errors import InputError, reason
from .ranges import RangeFile, RangeHandler, Version, register
from .store_requests import S3, STORES, ReplacedError, no_such_file, store_of

BLOCK = 2**18  # bytes that are stored together
FEWEST, MOST = 4, 32  # blocks that one request reads ahead, more and more where reading goes straight on
IN_MEMORY = 64  # blocks of a thread
AT_ONCE = 2**23  # bytes of a request for a file that is fetched as a whole
REMEMBERED, SECONDS = 1000, 600  # how many answers on sizes and versions are remembered, and for how long
MANY = 10  # files of a folder that are looked at by listing it
# A request fails after so many seconds; it is repeated after waits that double. The longest time, 8 minutes
# without any answer, is less than that of DATA_LOADER.TIMEOUT.
TIMEOUT = 30
TRIES = 10
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
QUIET = 60  # seconds between log lines of a process on failed requests

log = logging.getLogger("video_iresnet")


class StoreHandler(RangeHandler):
    """Addresses, for iopath's path manager."""

    def _get_supported_prefixes(self) -> list[str]:
        return list(STORES)

    def open_range(self, path: str) -> StoredFile:
        """See RangeHandler."""
        return StoredFile(path, look(path))

    def prepare(self, paths: Sequence[str]) -> None:
        """List folders with many of these files, which takes fewer requests than to look at each."""
        folders = Counter(os.path.dirname(path) for path in paths if isinstance(store_of(path), S3))
        many = [folder for folder, number in folders.items() if number >= MANY]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(_list, many, itertools.repeat(set(paths))))

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """Return the path of a copy of the whole file in the cache. Raises InputError, FileNotFoundError."""
        with self.open_range(path) as file:
            try:
                return str(_copied(file, cache()))
            except OSError as error:
                raise InputError(
                    f"{shown(path)} cannot be copied to {cache().folder}: {reason(error)}; name another "
                    "folder with VIDEO_IRESNET_CACHE"
                ) from error


class StoredFile(RangeFile):
    """An object of a store. Blocks come from memory, from the cache on the disk, or from the store."""

    def __init__(self, path: str, version: Version) -> None:
        super().__init__(path, version)
        self._follows = -1  # the block after those that were fetched last
        self._ahead = FEWEST

    def read_at(self, start: int, size: int) -> bytes:
        """See RangeFile. A read of more than a block fetches no others."""
        first, last = start // BLOCK, (start + size - 1) // BLOCK
        data = b"".join(self._blocks(first, last, read_ahead=size <= BLOCK))
        return data[start - first * BLOCK :][:size]

    def _blocks(self, first: int, last: int, *, read_ahead: bool) -> Iterator[bytes]:
        number = first
        while number <= last:
            block = self._known(number)
            if block is not None:
                number += 1
                yield block
                continue
            most = number + self._next_ahead(number) if read_ahead else last + 1
            end = number + 1
            while end < most and end * BLOCK < self.version.size and self._known(end) is None:
                end += 1
            fetched = self.fetch(number * BLOCK, min(end * BLOCK, self.version.size))
            self._follows = end
            for place in range(number, end):
                block = fetched[(place - number) * BLOCK :][:BLOCK]
                self._keep(place, block)
                if place <= last:
                    yield block
            number = end

    def _next_ahead(self, number: int) -> int:
        self._ahead = min(2 * self._ahead, MOST) if number == self._follows else FEWEST
        return self._ahead

    def fetch(self, start: int, end: int) -> bytes:
        """Return the bytes [start, end) from the store."""
        return bytes(answered(self.name, "fetch", start, end, self.version))

    def _known(self, number: int) -> bytes | None:
        name = self._block_name(number)
        block = _recent.get(name)
        if block is None and self.version.written and (block := cache().get(name)) is not None:
            _recent.put(name, block)
        return block

    def _keep(self, number: int, block: bytes) -> None:
        name = self._block_name(number)
        _recent.put(name, block)
        if self.version.written:
            cache().put(name, block)

    def _block_name(self, number: int) -> str:
        return name_of(self.name, self.version, number)


class Recent(threading.local):
    """The blocks that a thread used last."""

    def __init__(self) -> None:
        self.blocks: dict[str, bytes] = {}

    def get(self, name: str) -> bytes | None:
        return self.blocks.get(name)

    def put(self, name: str, block: bytes) -> None:
        if len(self.blocks) >= IN_MEMORY:
            del self.blocks[next(iter(self.blocks))]
        self.blocks[name] = block


_recent = Recent()
_looked: dict[str, tuple[float, Version]] = {}
_listed: dict[str, tuple[int, str]] = {}
_warned_at = -float(QUIET)


def look(path: str) -> Version:
    """Return the size and version of a file, as it is or was within SECONDS. Raises FileNotFoundError or
    InputError.
    """
    if path in _listed:
        return Version(*_listed[path])
    then, version = _looked.get(path, (-float(SECONDS), Version(0, "")))
    if time.monotonic() - then >= SECONDS:
        version = answered(path, "look")
        if len(_looked) >= REMEMBERED:
            _looked.clear()
        _looked[path] = time.monotonic(), version
    return version


def _list(folder: str, wanted: Collection[str]) -> None:
    """Remember the sizes and versions of wanted files of a folder, which processes that are forked share."""
    after = ""
    while True:
        try:
            found, after = answered(folder, "page", after)
        except InputError as error:
            if isinstance(error.__cause__, PermissionError):  # which may be for reading alone
                return
            raise
        # Not as Versions, which a garbage collection would copy into every process.
        _listed.update({path: tuple(version) for path, version in found.items() if path in wanted})
        if not after:
            return


def answered(path: str, question: str, *more: Any) -> Any:
    """Ask the store of a path with one of its methods, again and again if it does not answer as it should.

    Raises FileNotFoundError if the file does not exist; InputError if it cannot be read or was replaced.
    """
    store, began = store_of(path), time.monotonic()
    for attempt in range(1, TRIES + 1):
        files = store.file_system()
        try:
            return _answer(files, getattr(store, question), path, *more)
        except Exception as error:
            problem = _explained(path, store, error)
            if problem is not None:
                raise problem from error
            failure = error
        if attempt < TRIES:
            _warn(path, failure, attempt)
            wait = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT)
            time.sleep(wait * random.SystemRandom().uniform(0.5, 1))
    raise InputError(
        f"{shown(path)} could not be read in {TRIES} tries and {time.monotonic() - began:.0f} s (the last: "
        f"{_reason(failure)}); when the store and the network work again, start the same command again"
    ) from failure


def _answer(files: Any, ask: Any, path: str, *more: Any) -> Any:
    from fsspec.asyn import sync
    from fsspec.exceptions import FSTimeoutError

    try:
        answer = sync(files.loop, ask, files, path, *more, timeout=TIMEOUT)
    except FSTimeoutError as error:
        raise OSError(f"no answer in {TIMEOUT} s") from error
    if isinstance(answer, bytes) and len(answer) != more[1] - more[0]:
        raise OSError(f"{len(answer)} bytes came instead of {more[1] - more[0]}")
    return answer


def _explained(path: str, store: Any, error: Exception) -> Exception | None:
    """Return what is to be raised for an error, or None if the same request may be answered yet."""
    status = store.status(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return no_such_file(path)
    if status == 416:
        error = ReplacedError()
    if isinstance(error, ReplacedError):
        _looked.pop(path, None)
        _listed.pop(path, None)
    if isinstance(error, InputError):
        return InputError(f"{shown(path)} cannot be read: {error}")
    if isinstance(error, PermissionError) or status in (401, 403):
        return InputError(
            f"{shown(path)} may not be read ({_reason(error)}); check the credentials and the name"
        )
    refused = 400 <= status < 500 and status not in (408, 429)
    if refused or isinstance(error, ValueError) or not isinstance(error, store.passing):
        return InputError(
            f"{shown(path)} cannot be read: {_reason(error)}; check the address, the credentials and the "
            "region"
        )
    return None


def _warn(path: str, error: BaseException, attempt: int) -> None:
    global _warned_at
    if time.monotonic() - _warned_at >= QUIET:
        _warned_at = time.monotonic()
        log.warning("%s: %s; try %d of %d failed", shown(path), _reason(error), attempt, TRIES)


def _reason(error: BaseException) -> str:
    if hasattr(error, "status") and hasattr(error, "message"):  # of aiohttp
        return f"{error.status} {error.message}"
    return shown(reason(error))


def shown(text: str) -> str:
    """Return an address, or a text with addresses, without passwords and signatures."""
    return re.sub(r"(https?://)(?:[^/@\s]*@)?([^?\s]*)(?:\?\S*)?", r"\1\2", text)


def name_of(path: str, version: Version, number: int | None = None) -> str:
    """Return the name of a block, or of a whole file, in the cache."""
    return hashlib.sha256(repr((path, *version, number, BLOCK)).encode("utf-8", "replace")).hexdigest()


@functools.cache
def cache() -> DiskCache:
    """Return the cache of this machine. Raises InputError if its folder or size cannot be used."""
    folder = cache_folder()
    text = os.environ.get("VIDEO_IRESNET_CACHE_GB") or "10"
    if not re.fullmatch(r"\d{1,9}(\.\d*)?", text):
        raise InputError(f"VIDEO_IRESNET_CACHE_GB is {text!r}; expected a number of gigabytes, or 0")
    return DiskCache(folder, int(float(text) * 1e9))


def _copied(file: StoredFile, cache: DiskCache) -> Path:
    """Return the path of a copy of a file, which one process makes while others wait for it."""
    readable = re.sub(r"[^\w.-]+|^\.+", "_", os.path.basename(file.name).partition("?")[0], flags=re.ASCII)
    target = cache.folder / f"{name_of(file.name, file.version)}{WHOLE}{readable[-100:]}"
    partial = target.with_name(f"{target.name}.partial")
    with open(partial, "a+b") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        if not file.version.written or not target.exists() or target.stat().st_size != file.version.size:
            cache.make_room(file.version.size)
            out.truncate(0)
            for start in range(0, file.version.size, AT_ONCE):
                out.write(file.fetch(start, min(start + AT_ONCE, file.version.size)))
            out.flush()
            os.replace(partial, target)
        else:
            partial.unlink(missing_ok=True)
            os.utime(target)
    return target


register(StoreHandler())
