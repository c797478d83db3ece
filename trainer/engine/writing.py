"""Writes checkpoints in a thread, so that no rank waits for a disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """Runs one function at a time, in a thread. What it raises is raised by the next call."""

    def __init__(self) -> None:
        self._writing: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Waits for the function before, then starts this one."""
        self.wait()
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = pool.submit(write)
        pool.shutdown(wait=False)  # the thread ends with the function; the interpreter waits for it before it ends

    def wait(self) -> None:
        """Returns when the function has ended."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
