"""Stores lasting failures of fetches, by everything that they depend on, so that a later run does not request dead links again."""

from __future__ import annotations

import functools

from pipeline.errors import ClipError, DownloadError, TransientError
from pipeline.fetch.settings import DownloadSettings
from pipeline.runtime.damage import read_named, write_named
from pipeline.runtime.folder import Folder
from pipeline.runtime.installed import installed_version
from pipeline.schema import Failure, flat, from_flat, stable_hash

PACE = frozenset(
    {
        *("rate_limit_bytes_per_second", "sleep_seconds", "max_per_host", "pause_after", "pause_seconds"),
        *("retries", "backoff_seconds", "backoff_max_seconds", "retry_after_max_seconds"),
        *("socket_timeout_seconds", "stall_seconds", "min_bytes_per_second", "timeout_seconds", "check_for_changes"),
    }
)
"""Settings of timing and speed. They are no part of a failure's key: failures that depend on them are transient and not stored."""


def failure_of(stage: str, error: ClipError) -> Failure:
    """The error as a Failure. If it is not ``transient``, another run with the same settings would fail in the same way."""
    return Failure(stage, error.code, str(error), isinstance(error, TransientError))


class FetchFailures:
    """The failed fetches in ``state``. ``try_again``: ignore stored failures, and remove that of a fetch that succeeds."""

    def __init__(self, state: Folder, *, try_again: bool = False) -> None:
        self._state, self._try_again = state, try_again

    def check(self, key: str, settings: DownloadSettings) -> None:
        """Raises DownloadError if a lasting failure of this fetch is stored."""
        name = _name(key, settings)
        if self._try_again:
            return
        failed = read_named(self._state, name, lambda values: from_flat(Failure, values["failed"]))
        if failed is not None:
            raise DownloadError(failed.code, failed.message)

    def keep(self, key: str, settings: DownloadSettings, error: ClipError) -> None:
        """Stores the error unless it is transient."""
        failure = failure_of("fetch", error)
        if not failure.transient:
            write_named(self._state, _name(key, settings), {"failed": flat(failure)})

    def forget(self, key: str, settings: DownloadSettings) -> None:
        """Removes the stored failure, after the fetch has succeeded."""
        if self._try_again:
            self._state.remove(_name(key, settings))


def _name(key: str, settings: DownloadSettings) -> str:
    """Name of the file, from the fetch key, the settings that can cause a failure, the cookies, and the version of yt-dlp."""
    decisive = settings.model_dump_json(exclude=set(PACE))
    cookies = None
    if settings.cookies_file is not None and settings.cookies_file.is_file():
        status = settings.cookies_file.stat()
        cookies = (status.st_size, status.st_mtime_ns)
    name = stable_hash("unfetched", 1, key, decisive, cookies, _yt_dlp_version(), length=40)
    return f"unfetched/{name[:2]}/{name}.json"


_yt_dlp_version = functools.cache(functools.partial(installed_version, "yt-dlp"))
"""The version of yt-dlp, without importing it."""
