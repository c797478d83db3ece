"""Processes that decode, and the number of things that may use a core at once.

Media from the internet is decoded in processes of its own: one that crashes, hangs or eats the memory costs its source, not the build.
The limits on time and memory are kept from here, outside of them.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import pebble

from pipeline.errors import ClipError, HearscapeError, StoppedError, WorkerError
from pipeline.memory import Memory, watch_memory
from pipeline.process_folder import socket_folder
from pipeline.stop import Stop
from pipeline.store import DISK_FULL_ERRNOS

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

    ``stop`` ends what runs, and is set by :meth:`close`. ``memory_bytes``: a process that holds more is killed, which costs
    the source that it worked on; None: no limit. It is there for others that start processes, too. ``temporary`` is a folder for
    whatever the processes' libraries take for temporary; None: the system's.
    """

    def __init__(
        self,
        num_workers: int | None = None,
        stop: Stop | None = None,
        memory_bytes: int | None = None,
        temporary: Path | None = None,
    ) -> None:
        self.num_workers = num_workers or num_cores()
        self.memory_bytes = memory_bytes
        self.slots = threading.BoundedSemaphore(self.num_workers)
        self._stop = stop or Stop()
        self._lock = threading.Lock()
        self._memories: dict[int, Memory] = {}
        context = _context()
        pids, self._tell_pid = context.Pipe(duplex=False)
        self._pool = pebble.ProcessPool(
            max_workers=self.num_workers,
            max_tasks=MAX_JOBS_PER_PROCESS,
            context=context,
            initializer=_start,
            initargs=(self._tell_pid, temporary),
        )
        threading.Thread(target=self._watch_memory, args=(pids,), name="worker-pids", daemon=True).start()

    def run(self, work: Callable[P, T], timeout_seconds: float, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs ``work`` in one of the processes and waits.

        Raises what it raises, WorkerError ``worker_killed``, ``out_of_memory`` or ``timed_out``, or StoppedError.
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
                    memory = self._memories.get(error.pid)
                    if memory is not None and memory.exceeded:
                        raise WorkerError(
                            "out_of_memory", f"the process that decoded it was ended: {memory.exceeded}"
                        ) from error
                    # it may have been the victim of its neighbour: the work is given to another process once
                    if last_try:
                        cause = _exit(error.exitcode)
                        raise WorkerError("worker_killed", f"the process was killed twice ({cause})") from error
                except HearscapeError:
                    raise
                except Exception as error:
                    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
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
            self._tell_pid.close()

    def _watch_memory(self, pids: Connection[Any, int]) -> None:
        """Each process tells its number when it starts; the pipe ends when the pool is closed."""
        with pids, contextlib.suppress(EOFError):
            while True:
                pid = pids.recv()
                self._memories[pid] = watch_memory(pid, self.memory_bytes)


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
    _choose_folder_of_sockets()
    resource_tracker.ensure_running()  # unblocks signals when it starts, so it goes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C would end the server while it loads
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _choose_folder_of_sockets() -> None:
    """Where the server's socket lies is decided once in a process: there where it is found when the process is killed."""
    before = tempfile.tempdir
    tempfile.tempdir = str(socket_folder())
    try:
        get_temp_dir()
    finally:
        tempfile.tempdir = before


def _start(tell_pid: Connection[int, Any], temporary: Path | None) -> None:
    if temporary is not None:
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent decides
    threading.Thread(target=_end_with_the_build, name="end-with-the-build", daemon=True).start()
    with tell_pid:
        tell_pid.send(os.getpid())


def _end_with_the_build() -> None:
    """A build that was killed cannot end us: what we decode is for nobody then."""
    build = multiprocessing.parent_process()
    assert build is not None
    build.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _exit(exitcode: int) -> str:
    if exitcode == -signal.SIGKILL:
        return "SIGKILL: often too little memory, try fewer workers"
    return signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
