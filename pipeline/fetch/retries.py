"""Retries of downloads: after which errors, after which pause, and what is reported to the host's gate. Why not tenacity: see `retried`."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import DownloadError, TransientDownloadError
from pipeline.fetch.errors import retry_after_seconds
from pipeline.fetch.hosts import Visit
from pipeline.runtime.awake import awake_seconds
from pipeline.runtime.stop import Stop
from pipeline.runtime.waiting import waiting
from pipeline.schema import unit_interval

LOG = logging.getLogger(__name__)
T = TypeVar("T")

RETRIED = frozenset(
    {"connection", "truncated", "stalled", "proxy", "section", "http_5xx", "http_408", "http_425", "http_429"}
)
"""Codes of errors after which the same fetch is tried again. After other transient errors a later run tries again."""
REFUSALS = frozenset({"bot_check", "http_429"})


def with_retries(
    attempt: Callable[[], T],
    visit: Visit,
    stop: Stop,
    *,
    name: str,
    deadline: float | None,
    retries: int,
    backoff_seconds: float,
    backoff_max_seconds: float,
    retry_after_max_seconds: float,
) -> T:
    """The result of the attempt. Raises its last error after the retries, or StoppedError. ``deadline``: in :func:`awake_seconds`; no wait
    goes beyond it."""
    for number in itertools.count():
        try:
            result = attempt()
        except TransientDownloadError as error:
            retry_after = retry_after_seconds(error)
            is_paused = error.code in REFUSALS and visit.refused(
                str(error), at_once=error.code == "bot_check", retry_after_seconds=retry_after
            )
            if is_paused or error.code not in RETRIED or number >= retries:
                raise
            if retry_after is not None and retry_after > retry_after_max_seconds:
                raise
            wait = (
                retry_after if retry_after is not None else _backoff(name, number, backoff_seconds, backoff_max_seconds)
            )
            if deadline is not None and awake_seconds() + wait > deadline:
                raise
            LOG.info("%s: %s; trying again in %.1f s", name, error, wait)
            with waiting():
                stop.sleep(wait)
        except DownloadError as error:
            if error.code.startswith("http_"):
                visit.answered()
            raise
        else:
            visit.answered()
            return result
    raise AssertionError("the loop has no end")


def _backoff(name: str, number: int, first_seconds: float, max_seconds: float) -> float:
    """Seconds to wait. They double each time, and vary by ``name``, so that not all requests to a host are repeated at the same time."""
    return min(first_seconds * 2.0**number, max_seconds) * (0.5 + unit_interval(name, number) / 2)
