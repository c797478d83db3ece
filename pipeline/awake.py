"""Time-outs that leave out the time in which this process was stopped, as by Ctrl-Z or on a laptop that slept."""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_SECONDS = 1.0


def wait_awake(is_over: Callable[[float], bool], seconds: float) -> bool:
    """Calls ``is_over(step_seconds)``, which waits at most that long, until it returns True; False when ``seconds`` are over.

    A step counts for at most twice its length: one that took longer is one in which nothing of this process ran, so that what came
    meanwhile could not be seen.
    """
    left_seconds = seconds
    while left_seconds > 0:
        step_seconds = min(left_seconds, STEP_SECONDS)
        started = time.monotonic()
        if is_over(step_seconds):
            return True
        left_seconds -= min(max(time.monotonic() - started, step_seconds / 2), 2 * step_seconds)
    return False


class AwakeClock:
    """Seconds since it was made, by :meth:`tick`, which is called at least every ``step_seconds``; longer pauses count for twice that."""

    def __init__(self, step_seconds: float = STEP_SECONDS) -> None:
        self.seconds = 0.0
        self._step_seconds = step_seconds
        self._last = time.monotonic()

    def tick(self) -> float:
        """The seconds until now."""
        now = time.monotonic()
        self.seconds += min(now - self._last, 2 * self._step_seconds)
        self._last = now
        return self.seconds
