"""Requests to stores, by way of fsspec: the size and version of an object, and a range of its bytes.

Each is one request and is not repeated here. Bytes are checked to be of the version that was asked for.
"""

from __future__ import annotations

import errno
import json
import re
from typing import Any, Protocol

from .errors import InputError, missing_extra
from .ranges import Version

PAGE = 1000  # files of a listing in one request, which is the most that S3 allows


class ReplacedError(InputError):
    """An object that was replaced by another one."""

    def __init__(self) -> None:
        super().__init__("it was replaced by another one while it was read")


class Store(Protocol):
    """A kind of store. The file system is fsspec's, one for each process, whose event loop runs requests."""

    # Errors after which the same request may be answered yet; set by file_system.
    passing: tuple[type[BaseException], ...]

    def file_system(self) -> Any:
        """Return the file system, the same one at each call. Raises InputError if a package is missing."""
        ...

    async def look(self, files: Any, path: str) -> Version:
        """Return the size and version of an object."""
        ...

    async def fetch(self, files: Any, path: str, start: int, end: int, version: Version) -> bytes:
        """Return the bytes [start, end). Raises ReplacedError if the object has another version."""
        ...

    def status(self, error: BaseException) -> int:
        """Return the HTTP status behind an error, or 0."""
        ...


class S3:
    """S3, and what speaks its language (AWS_ENDPOINT_URL). Credentials are found as by AWS's own tools."""

    passing: tuple[type[BaseException], ...] = ()

    def file_system(self) -> Any:
        try:
            import fsspec
            from botocore.exceptions import ConnectionError
            from s3fs.core import S3_RETRYABLE_ERRORS
        except ImportError as error:
            raise missing_extra("reading from S3", "s3", error) from error
        self.passing = (*S3_RETRYABLE_ERRORS, ConnectionError, OSError)
        once = _with_ours("s3", "config_kwargs", retries={"total_max_attempts": 1})
        files = fsspec.filesystem("s3", **once)
        files.retries = 1
        return files

    async def look(self, files: Any, path: str) -> Version:
        bucket, key, _ = files.split_path(path)
        answer = await files._call_s3("head_object", Bucket=bucket, Key=key)
        return Version(answer["ContentLength"], answer["ETag"])

    async def fetch(self, files: Any, path: str, start: int, end: int, version: Version) -> bytes:
        bucket, key, _ = files.split_path(path)
        answer = await files._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")
        async with answer["Body"] as body:
            check_version(answer["ETag"], version)
            return bytes(await body.read())

    async def page(self, files: Any, folder: str, after: str) -> tuple[dict[str, Version], str]:
        """Return up to PAGE files of a folder, and where the next page begins, if there is one."""
        bucket, key, _ = files.split_path(folder)
        more = {"ContinuationToken": after} if after else {}
        answer = await files._call_s3(
            "list_objects_v2",
            Bucket=bucket,
            Prefix=f"{key}/" if key else "",
            Delimiter="/",
            MaxKeys=PAGE,
            **more,
        )
        found = {
            f"s3://{bucket}/{entry['Key']}": Version(entry["Size"], entry["ETag"])
            for entry in answer.get("Contents", [])
        }
        return found, answer.get("NextContinuationToken", "")

    def status(self, error: BaseException) -> int:
        answer = getattr(error.__cause__, "response", {})
        return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


class GoogleCloud:
    """Google Cloud Storage. Credentials are found as by Google's own tools."""

    passing: tuple[type[BaseException], ...] = ()

    def file_system(self) -> Any:
        try:
            import aiohttp
            import fsspec
            from gcsfs.retry import HttpError
            from google.auth.exceptions import TransportError
        except ImportError as error:
            raise missing_extra("reading from Google Cloud Storage", "gs", error) from error
        self.passing = (HttpError, aiohttp.ClientError, TransportError, OSError)
        return fsspec.filesystem("gs")

    async def look(self, files: Any, path: str) -> Version:
        bucket, key, _ = files.split_path(path)
        found = json.loads(await self._get(files, "b/{}/o/{}", bucket, key))
        return Version(int(found["size"]), found["generation"])

    async def fetch(self, files: Any, path: str, start: int, end: int, version: Version) -> bytes:
        wanted = {"Range": f"bytes={start}-{end - 1}"}
        try:
            return await self._get(files, files.url(path), headers=wanted, ifGenerationMatch=version.written)
        except FileExistsError as error:  # what gcsfs makes of status 412
            raise ReplacedError from error

    async def _get(self, files: Any, *words: str, **options: Any) -> bytes:
        """Return the content, without gcsfs's own repetitions and tracebacks in the log."""
        *_, content = await files._request.__wrapped__(files, "GET", *words, **options)
        return bytes(content)

    def status(self, error: BaseException) -> int:
        if str(error).startswith("Forbidden"):
            return 403
        code = str(getattr(error, "code", 0))
        return int(code) if code.isdigit() else 0


class Web:
    """A web server that answers requests of byte ranges. Proxies are taken from the environment, and
    credentials from ~/.netrc.
    """

    passing: tuple[type[BaseException], ...] = ()

    def file_system(self) -> Any:
        try:
            import aiohttp
            import fsspec
        except ImportError as error:
            raise missing_extra("reading from a web server", "s3", error) from error
        self.passing = (aiohttp.ClientError, OSError)
        return fsspec.filesystem("http", **_with_ours("http", "client_kwargs", trust_env=True))

    async def look(self, files: Any, path: str) -> Version:
        async with await self._get(files, path, 0, 1) as answer:
            if answer.status == 416:  # an empty file has no byte 0
                return Version(0, self._written(answer))
            self._check_partial(answer)
            total = re.fullmatch(r"bytes .+/(\d+)", answer.headers.get("Content-Range", ""))
            if not total:
                raise InputError("its server does not tell the size")
            return Version(int(total[1]), self._written(answer))

    async def fetch(self, files: Any, path: str, start: int, end: int, version: Version) -> bytes:
        async with await self._get(files, path, start, end) as answer:
            self._check_partial(answer)
            check_version(self._written(answer), version)
            return bytes(await answer.read())

    async def _get(self, files: Any, path: str, start: int, end: int) -> Any:
        session = await files.set_session()
        options = dict(files.kwargs)
        ours = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        options["headers"] = {**options.get("headers", {}), **ours}
        return await session.get(files.encode_url(path), **options)

    def _check_partial(self, answer: Any) -> None:
        answer.raise_for_status()
        if answer.status != 206:
            raise InputError("its server does not answer requests of byte ranges")

    def _written(self, answer: Any) -> str:
        return str(answer.headers.get("ETag") or answer.headers.get("Last-Modified", ""))

    def status(self, error: BaseException) -> int:
        return int(getattr(error, "status", 0))


def _with_ours(protocol: str, option: str, **ours: Any) -> dict[str, Any]:
    """Return an option of a file system as the user set it in fsspec's configuration, with our values."""
    from fsspec.config import conf

    return {option: {**conf.get(protocol, {}).get(option, {}), **ours}}


def check_version(found: str, version: Version) -> None:
    """Raise ReplacedError if an answer is of another version than the one that was asked for."""
    if found != version.written:
        raise ReplacedError


STORES: dict[str, Store] = {"s3://": S3(), "gs://": GoogleCloud(), "https://": Web(), "http://": Web()}


def store_of(path: str) -> Store:
    """Return the store of an address."""
    return next(store for prefix, store in STORES.items() if path.startswith(prefix))


def no_such_file(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "No such file or directory", path)
