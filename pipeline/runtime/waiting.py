"""Counts the time that a source waits for others (for a slot, a host, a lock) separately from its work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Waited:
    """Seconds of waiting in this thread during the block of :func:`counting`."""

    seconds: float = 0.0


_COUNTED: ContextVar[tuple[Waited, ...]] = ContextVar("_COUNTED", default=())


@contextlib.contextmanager
def counting() -> Iterator[Waited]:
    """Counts the time of waiting in this thread while the block runs."""
    waited = Waited()
    token = _COUNTED.set((*_COUNTED.get(), waited))
    try:
        yield waited
    finally:
        _COUNTED.reset(token)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Counts the time of the block, which only waits for others, as waiting."""
    started = time.monotonic()
    try:
        yield
    finally:
        add_waited(time.monotonic() - started)


@contextlib.contextmanager
def counted_lock(lock: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    """Like ``with lock``; the time until the lock is acquired counts as waiting."""
    with contextlib.ExitStack() as stack:
        with waiting():
            stack.enter_context(lock)
        yield


def add_waited(seconds: float) -> None:
    """Adds to the time of waiting. Negative: so much of the time that was counted as waiting was work."""
    for waited in _COUNTED.get():
        waited.seconds += seconds
