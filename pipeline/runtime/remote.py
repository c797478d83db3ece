"""Reads files at any URL of fsspec, with retries."""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import fsspec
from pydantic import Field

from pipeline.errors import ShardError
from pipeline.runtime.bounded import BLOCK_BYTES, TooMuchError, check_declared_size, reading_failures
from pipeline.schema import unit_interval
from pipeline.settings import Settings

LOG = logging.getLogger(__name__)
T = TypeVar("T")

MAX_BYTES = 256 << 20
"""Largest file that is read as a whole: a manifest of about a million shards."""
WEB = ("http://", "https://")
LASTING = (TooMuchError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors for which a retry does not help."""
PASSING_STATUS = {408, 425, 429}
"""HTTP status codes below 500 for which a retry may help."""
NO_RANGES = "its server sends whole files only: a server that supports range requests is needed"


class Retries(Settings):
    """How failed requests are tried again."""

    num: int = Field(default=4, ge=0)
    """Number of retries of one request."""
    pause_seconds: float = Field(default=0.5, ge=0)
    """Pause before the first retry. It doubles each time."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """Time without data from an HTTP server after which a request is tried again."""


class Remote:
    """A folder at a URL."""

    def __init__(self, root: str, retries: Retries) -> None:
        self._retries = retries
        try:
            self._fs, path = fsspec.core.url_to_fs(root, **_options(root, retries))
        except (ImportError, ValueError) as error:
            raise ShardError("unreadable", f"it cannot be opened: {error}") from error
        self._path = path.rstrip("/")

    def num_bytes(self, name: str) -> int | None:
        """A file's size in bytes, by one request. None: the server does not give it.

        Raises ShardError if the file does not exist, or if the request still fails after the retries.
        """
        where = f"{self._path}/{name}"
        try:
            size = retried(lambda: with_true_cause(lambda: self._fs.info(where)), where, self._retries).get("size")
        except reading_failures() as error:
            missing = isinstance(error, FileNotFoundError)
            raise ShardError(
                "missing" if missing else "unreadable",
                "is missing" if missing else f"cannot be read: {short_text_of(error)}",
            ) from error
        return None if size is None else int(size)

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """A file's bytes ``[start, end)``, or the whole file of at most 256 MiB.

        Raises ShardError if the file does not exist, the request still fails after the retries, or the server sends more than was
        requested.
        """
        where = f"{self._path}/{name}"
        failures = reading_failures()
        try:
            data = retried(lambda: self._fs.cat_file(where, start=start, end=end), where, self._retries)
        except failures as error:
            if isinstance(error, TooMuchError) and start is not None:
                raise ShardError("no_ranges", NO_RANGES) from error
            raise ShardError("unreadable", f"it cannot be read: {short_text_of(error)}") from error
        if start is not None and end is not None and len(data) > end - start:
            raise ShardError("no_ranges", NO_RANGES)
        return cast("bytes", data)


def retried(call: Callable[[], T], where: str, retries: Retries) -> T:
    """The result of the call. Raises its last error after the retries. ``where``: name of the file in the log.

    A loop of our own: tenacity keeps the error in a cycle of references, and with it the connection of an HTTP error open.
    """
    failures = reading_failures()
    for number in range(retries.num):
        try:
            return call()
        except failures as error:
            if not _may_pass(error):
                raise
            # doubles each time, and varies by the file: not all requests to a server are repeated at the same time
            wait = retries.pause_seconds * 2.0**number * (0.75 + unit_interval(where, number) / 2)
            LOG.info("%s: %s; trying again in %.1f s", where, short_text_of(error), wait)
            time.sleep(wait)
    return call()


def with_true_cause(call: Callable[[], T]) -> T:
    """The result of the call. For every failed look-up of a file at an HTTP URL fsspec raises FileNotFoundError; if its cause was another
    one, such as a time-out, this raises the cause."""
    try:
        return call()
    except FileNotFoundError as error:
        status = getattr(error.__cause__, "status", None)
        if error.__cause__ is None or status in (404, 410) or not isinstance(error.__cause__, reading_failures()):
            raise
        raise error.__cause__ from error


def _may_pass(error: BaseException) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int) and status >= 400:
        return status >= 500 or status in PASSING_STATUS
    return isinstance(error, reading_failures()) and not isinstance(error, LASTING)


def _options(root: str, retries: Retries) -> dict[str, Any]:
    if not root.startswith(WEB):
        return {}
    import aiohttp  # noqa: PLC0415

    silence = aiohttp.ClientTimeout(total=None, sock_connect=retries.timeout_seconds, sock_read=retries.timeout_seconds)
    return {"client_kwargs": {"timeout": silence, "response_class": _bounded_response()}}


@functools.cache
def _bounded_response() -> type[Any]:
    """A response class that reads at most the requested number of bytes, after decompression: a server may send more, or without end."""
    import aiohttp  # noqa: PLC0415

    class Bounded(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            if self._body is None:
                max_bytes = _requested_bytes(self.request_info.headers.get("Range", ""))
                check_declared_size(self, max_bytes)
                data = bytearray()
                async for block in self.content.iter_chunked(BLOCK_BYTES):
                    data += block
                    if len(data) > max_bytes:
                        raise TooMuchError(max_bytes)
                self._body = bytes(data)
            return self._body

    return Bounded


def _requested_bytes(range_header: str) -> int:
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", range_header)
    return int(match[2]) - int(match[1]) + 1 if match else MAX_BYTES


def short_text_of(error: BaseException) -> str:
    """A short text of an error of reading."""
    status, message = getattr(error, "status", None), getattr(error, "message", None)
    return f"HTTP {status} {message}" if isinstance(status, int) else f"{type(error).__name__}: {error}"
