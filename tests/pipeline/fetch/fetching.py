"""Settings for downloads in tests, and what is asked of a failed one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DownloadError
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.settings import DownloadSettings
from pipeline.schema import Fetched

QUICK = DownloadSettings(
    retries=2,
    backoff_seconds=0.02,
    socket_timeout_seconds=60.0,  # a busy machine is no stall
    stall_seconds=60.0,
    timeout_seconds=300.0,
    max_bytes=2_000_000,
    retry_after_max_seconds=2.0,
)
ONCE = QUICK.model_copy(update={"retries": 0})
IMPATIENT = {"socket_timeout_seconds": 0.6, "stall_seconds": 0.8}
"""Where the server stalls."""
HTML = b"<!doctype html><html><head><title>Gone</title></head><body>Nothing here.</body></html>"

Get = Callable[..., Fetched]


def failure(get: Get, url: str, settings: DownloadSettings = ONCE) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        get(url, settings)
    return caught.value


def leftovers(store: DownloadStore) -> list[Path]:
    return [path for path in store.root.glob("tmp/*/*") if path.name != "pins"]
