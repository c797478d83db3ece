"""Processes that decode, and the number of things that may use a core at once.

Media from the internet is decoded in processes of its own: one that crashes, hangs or eats the memory costs its source, not the build.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import ParamSpec, TypeVar, cast

import pebble

from pipeline.errors import ClipError, HearscapeError, StoppedError, WorkerError
from pipeline.stop import Stop

LOG = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

PRELOADED = ["pipeline.measure", "pyloudnorm", "scipy.signal", "scipy.ndimage"]
MAX_JOBS_PER_PROCESS = 500
"""A process is replaced after this many jobs, so that a leak in a library stays small."""


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of processes. ``slots`` limits what runs at once, including work (ffmpeg) that brings a process of its own.

    ``stop`` ends what runs, and is set by :meth:`close`.
    """

    def __init__(self, num_workers: int | None = None, stop: Stop | None = None) -> None:
        self.num_workers = num_workers or num_cores()
        self.slots = threading.BoundedSemaphore(self.num_workers)
        self._stop = stop or Stop()
        self._lock = threading.Lock()
        self._pool = pebble.ProcessPool(
            max_workers=self.num_workers,
            max_tasks=MAX_JOBS_PER_PROCESS,
            context=_context(),
            initializer=_start,
        )

    def run(self, work: Callable[P, T], timeout_seconds: float, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs ``work`` in one of the processes and waits.

        Raises what it raises, WorkerError ``worker_killed`` or ``timed_out``, or StoppedError.
        """
        for last_try in (False, True):
            with self.slots:
                future = self._schedule(work, timeout_seconds, args, kwargs)
                try:
                    with self._stop.calling(future.cancel):  # the pool itself would leave us waiting for the result
                        return cast("T", future.result())
                except CancelledError as error:
                    raise StoppedError from error
                except FutureTimeoutError as error:
                    raise WorkerError("timed_out", f"took longer than {timeout_seconds:.0f} s and was ended") from error
                except pebble.ProcessExpired as error:
                    if self._stop.is_set():
                        raise StoppedError from error
                    # it may have been the victim of its neighbour: the work is given to another process once
                    if last_try:
                        cause = _exit(error.exitcode)
                        raise WorkerError("worker_killed", f"the process was killed twice ({cause})") from error
                except HearscapeError:
                    raise
                except Exception as error:
                    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                        raise
                    raise _unexpected(error) from error
        raise AssertionError("the loop returns or raises")

    def _schedule(
        self, work: Callable[..., object], timeout_seconds: float, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Future[object]:
        with self._lock:
            self._stop.check()
            future: Future[object] = self._pool.schedule(work, args=args, kwargs=kwargs, timeout=timeout_seconds)
        return future

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        self._stop.set()
        with self._lock:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()


def _unexpected(error: Exception) -> ClipError:
    """A library that chokes on a file in a way nobody foresaw costs that file, and is logged for those who mend it."""
    LOG.error("unexpected error in a worker", exc_info=error)
    return ClipError(
        "unexpected", f"{type(error).__name__}: {error}. This should have had a name of its own: please report it"
    )


def _context() -> ForkServerContext:
    """Workers are forked from a server that has the libraries loaded: each starts at once, and shares their memory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # unblocks signals when it starts, so it goes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C would end the server while it loads
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent decides


def _exit(exitcode: int) -> str:
    if exitcode == -signal.SIGKILL:
        return "SIGKILL: often too little memory, try fewer workers"
    return signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
