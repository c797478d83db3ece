"""How long a source waited for others, apart from the work that was done on it: for a slot, a host, the turn of a lock."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Waited:
    """Seconds that were waited while :func:`counting` was at work in this thread."""

    seconds: float = 0.0


_COUNTED: ContextVar[tuple[Waited, ...]] = ContextVar("_COUNTED", default=())


@contextlib.contextmanager
def counting() -> Iterator[Waited]:
    """Counts what is waited, in this thread, while the block runs."""
    waited = Waited()
    token = _COUNTED.set((*_COUNTED.get(), waited))
    try:
        yield waited
    finally:
        _COUNTED.reset(token)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Around what only waits until others are done."""
    started = time.monotonic()
    try:
        yield
    finally:
        add_waited(time.monotonic() - started)


@contextlib.contextmanager
def held(lock: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    """``with lock``, where the time until it is had counts as waited."""
    with contextlib.ExitStack() as stack:
        with waiting():
            stack.enter_context(lock)
        yield


def add_waited(seconds: float) -> None:
    """Below 0: of what was counted so far, this much was work."""
    for waited in _COUNTED.get():
        waited.seconds += seconds
