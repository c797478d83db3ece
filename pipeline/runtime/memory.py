"""Limits the memory of other processes: a process above its limit is killed.

Linux only: a pidfd identifies one process, so that a later process with the same number is not killed. On other systems there is no
limit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import psutil

LOOK_SECONDS = 0.1
IS_SUPPORTED = hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")


class LimitedProcess:
    """One watched process. ``exceeded``: empty, or a text with the memory that it was killed for."""

    def __init__(self, pid: int, max_bytes: int) -> None:
        self.pid, self.max_bytes = pid, max_bytes
        self.exceeded = ""
        self._handle = os.pidfd_open(pid)  # identifies this process, even if its number is used again

    def check(self) -> bool:
        """Kills the process if it is above its limit. Returns whether it is still running."""
        used_bytes = resident_bytes(self.pid)
        try:
            if used_bytes > self.max_bytes:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
                self.exceeded = (
                    f"it used {used_bytes >> 20} MiB of memory, over the limit of {self.max_bytes >> 20} MiB"
                )
                return False
            signal.pidfd_send_signal(self._handle, 0)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        os.close(self._handle)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process in bytes, including shared memory. 0: it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def is_suspended(pid: int) -> bool:
    """Whether a process is stopped by SIGSTOP or a debugger. False if it has ended."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


class MemoryWatch:
    """Checks the added processes several times a second, in a thread that runs while there are any."""

    def __init__(self) -> None:
        self._watched: dict[int, LimitedProcess] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, pid: int, max_bytes: int) -> LimitedProcess | None:
        """Watches a process. None: it has ended already."""
        with self._lock:
            try:
                process = LimitedProcess(pid, max_bytes)
            except ProcessLookupError:
                return None
            if (before := self._watched.pop(pid, None)) is not None:
                before.close()
            self._watched[pid] = process
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
                self._thread.start()
            return process

    def remove(self, process: LimitedProcess) -> None:
        with self._lock:
            if self._watched.get(process.pid) is process:
                del self._watched[process.pid]
                process.close()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            with self._lock:
                ended = [process for process in self._watched.values() if not process.check()]
                for process in ended:
                    del self._watched[process.pid]
                    process.close()
                if not self._watched:
                    self._thread = None
                    return
            pause.wait(LOOK_SECONDS)


_WATCH = MemoryWatch()


class Memory:
    """The memory limit of one process. ``exceeded``: as in :class:`LimitedProcess`; empty if there is no limit."""

    def __init__(self, process: LimitedProcess | None) -> None:
        self._process = process

    @property
    def exceeded(self) -> str:
        return self._process.exceeded if self._process is not None else ""


def watch_memory(pid: int, max_bytes: int | None) -> Memory:
    """Limits the memory of a process until it ends. ``max_bytes`` None: no limit."""
    if max_bytes is None or not IS_SUPPORTED:
        return Memory(None)
    return Memory(_WATCH.add(pid, max_bytes))


@contextlib.contextmanager
def limited_memory(pid: int, max_bytes: int | None) -> Iterator[Memory]:
    """Limits the memory of a process while the block runs. Afterwards ``exceeded`` says whether it was killed."""
    memory = watch_memory(pid, max_bytes)
    try:
        yield memory
    finally:
        if memory._process is not None:
            _WATCH.remove(memory._process)
