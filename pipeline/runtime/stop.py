"""Stops a build early: one :class:`Stop` is passed to everything that waits or takes long."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from pipeline.errors import StoppedError


class Stop:
    """When it is set, all work that has it ends within about two seconds, by raising StoppedError.

    It stays set. It is safe for threads, and does not reach other processes.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._ends: dict[object, Callable[[], object]] = {}

    def set(self) -> None:
        with self._lock:
            self._event.set()
            ends = list(self._ends.values())
        for end in ends:
            end()

    def is_set(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raises StoppedError if it is set."""
        if self._event.is_set():
            raise StoppedError

    def sleep(self, seconds: float) -> None:
        """Waits ``seconds``. Raises StoppedError as soon as it is set."""
        self._event.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def calling(self, end: Callable[[], object]) -> Iterator[None]:
        """For a blocking call: when it is set during the block, ``end`` is called in another thread to make the call return. The caller
        must :meth:`check` afterwards.

        Raises StoppedError before the block if it is set already. ``end`` may also be called shortly after the block.
        """
        key = object()
        with self._lock:
            self.check()
            self._ends[key] = end
        try:
            yield
        finally:
            with self._lock:
                del self._ends[key]
