"""Retries of downloads: after which errors, after which pause, and what is reported to the host's gate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

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

    def attempt_and_report() -> T:
        try:
            result = attempt()
        except DownloadError as error:
            if not isinstance(error, TransientDownloadError) and error.code.startswith("http_"):
                visit.answered()
            raise
        visit.answered()
        return result

    def is_worth_retrying(error: BaseException) -> bool:
        """Reports refusals to the host's gate, which may pause the host."""
        if not isinstance(error, TransientDownloadError):
            return False
        retry_after = retry_after_seconds(error)
        is_paused = error.code in REFUSALS and visit.refused(
            str(error), at_once=error.code == "bot_check", retry_after_seconds=retry_after
        )
        is_soon = retry_after is None or retry_after <= retry_after_max_seconds
        return not is_paused and error.code in RETRIED and is_soon

    def wait_seconds(state: RetryCallState) -> float:
        retry_after = retry_after_seconds(_error(state))
        if retry_after is not None:
            return retry_after
        return _backoff(name, state.attempt_number - 1, backoff_seconds, backoff_max_seconds)

    def is_over(state: RetryCallState) -> bool:
        is_beyond_deadline = deadline is not None and awake_seconds() + state.upcoming_sleep > deadline
        return state.attempt_number > retries or is_beyond_deadline

    def log(state: RetryCallState) -> None:
        LOG.info("%s: %s; trying again in %.1f s", name, _error(state), state.upcoming_sleep)

    def sleep(seconds: float) -> None:
        with waiting():
            stop.sleep(seconds)

    return Retrying(
        retry=retry_if_exception(is_worth_retrying),
        stop=is_over,
        wait=wait_seconds,
        before_sleep=log,
        sleep=sleep,
        reraise=True,
    )(attempt_and_report)


def _error(state: RetryCallState) -> BaseException:
    """The error of the last attempt."""
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    return error


def _backoff(name: str, number: int, first_seconds: float, max_seconds: float) -> float:
    """Seconds to wait. They double each time, and vary by ``name``, so that not all requests to a host are repeated at the same time."""
    return min(first_seconds * 2.0**number, max_seconds) * (0.5 + unit_interval(name, number) / 2)
