"""Bytes from elsewhere: any URL that fsspec knows, asked again when a server stumbles."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

import fsspec
from pydantic import Field
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from pipeline.errors import ShardError
from pipeline.runtime.bounded import BLOCK_BYTES, TooMuchError, check_told_size, reading_failures
from pipeline.schema import unit_interval
from pipeline.settings import Settings

LOG = logging.getLogger(__name__)
T = TypeVar("T")

MAX_BYTES = 256 << 20
"""Largest file that is read whole: a manifest of about a million shards."""
WEB = ("http://", "https://")
LASTING = (TooMuchError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors that another try meets again."""
PASSING_STATUS = {408, 425, 429}
"""Besides 500 and above: answers of an HTTP server that may differ the next time."""
NO_RANGES = "its server sends whole files only: one that answers range requests is needed"


class Retries(Settings):
    """What is done when a server does not answer as it should."""

    num: int = Field(default=4, ge=0)
    """Further tries of one request."""
    pause_seconds: float = Field(default=0.5, ge=0)
    """Wait before the first further try; it doubles each time."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """Silence of an HTTP server after which a request is given up and tried again."""


class Remote:
    """A folder elsewhere."""

    def __init__(self, root: str, retries: Retries) -> None:
        self._retries = retries
        try:
            self._fs, path = fsspec.core.url_to_fs(root, **_options(root, retries))
        except (ImportError, ValueError) as error:
            raise ShardError("unreadable", f"it cannot be opened: {error}") from error
        self._path = path.rstrip("/")

    def num_bytes(self, name: str) -> int | None:
        """A file's size, as one request tells it. None: the server does not say.

        Raises ShardError when the file is not there, or that still cannot be found out after the retries.
        """
        where = f"{self._path}/{name}"
        try:
            size = retried(lambda: told_truly(lambda: self._fs.info(where)), where, self._retries).get("size")
        except reading_failures() as error:
            missing = isinstance(error, FileNotFoundError)
            raise ShardError(
                "missing" if missing else "unreadable", "is missing" if missing else f"cannot be read: {said(error)}"
            ) from error
        return None if size is None else int(size)

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """A file's bytes ``[start, end)``, or all of them, which may be 256 MiB.

        Raises ShardError when it is not there, still fails after the retries, or more comes than was asked for.
        """
        where = f"{self._path}/{name}"
        failures = reading_failures()
        try:
            data = retried(lambda: self._fs.cat_file(where, start=start, end=end), where, self._retries)
        except failures as error:
            if isinstance(error, TooMuchError) and start is not None:
                raise ShardError("no_ranges", NO_RANGES) from error
            raise ShardError("unreadable", f"it cannot be read: {said(error)}") from error
        if start is not None and end is not None and len(data) > end - start:
            raise ShardError("no_ranges", NO_RANGES)
        return cast("bytes", data)


def retried(call: Callable[[], T], where: str, retries: Retries) -> T:
    """The call's result, or its last error."""
    failures = reading_failures()

    def pause_seconds(state: RetryCallState) -> float:
        """Twice as long each time, and not the same for all that wait for one server."""
        number = state.attempt_number - 1
        return retries.pause_seconds * 2.0**number * (0.75 + unit_interval(where, number) / 2)

    def log(state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        LOG.info("%s: %s; trying again in %.1f s", where, said(error), state.upcoming_sleep)

    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, failures) and _may_pass(error)),
        stop=stop_after_attempt(retries.num + 1),
        wait=pause_seconds,
        before_sleep=log,
        reraise=True,
    )(call)


def told_truly(call: Callable[[], T]) -> T:
    """The call's result. fsspec says of every failure to look at a file on the web that it is not there: raises what was behind that."""
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
    """An answer that is read, unpacked, up to what was asked for: a server may send more, or without end."""
    import aiohttp  # noqa: PLC0415

    class Bounded(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            if self._body is None:
                max_bytes = _asked_bytes(self.request_info.headers.get("Range", ""))
                check_told_size(self, max_bytes)
                data = bytearray()
                async for block in self.content.iter_chunked(BLOCK_BYTES):
                    data += block
                    if len(data) > max_bytes:
                        raise TooMuchError(max_bytes)
                self._body = bytes(data)
            return self._body

    return Bounded


def _asked_bytes(range_header: str) -> int:
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", range_header)
    return int(asked[2]) - int(asked[1]) + 1 if asked else MAX_BYTES


def said(error: BaseException) -> str:
    """A failure of reading in a few words."""
    status, message = getattr(error, "status", None), getattr(error, "message", None)
    return f"HTTP {status} {message}" if isinstance(status, int) else f"{type(error).__name__}: {error}"
