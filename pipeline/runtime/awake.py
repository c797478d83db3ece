"""Time-outs that do not count the time in which this process was stopped, for example by Ctrl-Z or by a sleeping laptop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

STEP_SECONDS = 1.0
ASLEEP_SECONDS = 5.0
"""A step that takes longer than this means that the process was stopped, not that the machine is busy."""


def wait_awake(is_over: Callable[[float], bool], seconds: float) -> bool:
    """Calls ``is_over(step_seconds)``, which waits at most that long, until it returns True. Returns False after ``seconds``.

    A step counts for at most twice its length: in a longer step this process did not run, and could not see what happened.
    """
    left_seconds = seconds
    while left_seconds > 0:
        step_seconds = min(left_seconds, STEP_SECONDS)
        started = time.monotonic()
        if is_over(step_seconds):
            return True
        left_seconds -= min(max(time.monotonic() - started, step_seconds / 2), 2 * step_seconds)
    return False


class _Clock:
    """A clock that stops while this process is stopped. A thread reads it every second; a long gap between readings is not counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._asleep_seconds = 0.0
        threading.Thread(target=self._run, name="awake", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(STEP_SECONDS)
            self.read()

    def read(self) -> float:
        with self._lock:
            now = time.monotonic()
            if now - self._last > ASLEEP_SECONDS:
                self._asleep_seconds += now - self._last
            self._last = now
            return now - self._asleep_seconds


_clocks: dict[int, _Clock] = {}
"""The clock of this process, by its id. A forked process makes its own, as it has no thread that reads the clock."""


def awake_seconds() -> float:
    """Like time.monotonic, in seconds, without the time in which this process was stopped for more than ASLEEP_SECONDS at once."""
    pid = os.getpid()
    if pid not in _clocks:
        _clocks.clear()
        _clocks[pid] = _Clock()
    return _clocks[pid].read()
