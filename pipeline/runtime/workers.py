"""A pool of worker processes that decode media, and the limit on work that uses a core at once.

Media from the internet is decoded in separate processes: a process that crashes, hangs or uses too much memory fails its source, not
the build. The limits on time and memory are enforced here, outside of these processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import pebble

from pipeline.errors import StoppedError, WorkerError
from pipeline.runtime.awake import wait_awake
from pipeline.runtime.memory import Memory, is_suspended, watch_memory
from pipeline.runtime.process_folder import socket_folder
from pipeline.runtime.stop import Stop
from pipeline.runtime.waiting import counted_lock

P = ParamSpec("P")
T = TypeVar("T")

PRELOADED = ["pipeline.measure.video", "pyloudnorm", "scipy.signal", "scipy.ndimage"]
MAX_JOBS_PER_PROCESS = 500
"""A process is replaced after this many jobs, so that a leak in a library stays small."""
PR_SET_PDEATHSIG = 1
END_SECONDS = 30.0
"""How long to wait until a killed process has ended."""


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of processes. ``slots`` limits the work that runs at once, including ffmpeg, which is a process of its own.

    ``stop`` ends running work, and is set by :meth:`close`. ``memory_bytes``: a process above it is killed, and its source fails. None:
    no limit. Code that starts other processes uses it as well. ``temporary``: folder for temporary files of the libraries in the
    processes. None: the system's.
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
        self._pids_lock = threading.Lock()
        self._memories: dict[int, Memory] = {}
        self._numbers = itertools.count()
        self._pid_of: dict[int, int | None] = {}
        """Process of each running job, by its number. None: no process has started it yet."""
        self._temporary = temporary
        self._context = _context()
        pids, self._tell_pid = self._context.Pipe(duplex=False)
        self._pool = self._new_pool()
        threading.Thread(target=self._listen, args=(pids,), name="worker-pids", daemon=True).start()

    def run(self, work: Callable[P, T], timeout_seconds: float, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs ``work`` in one of the processes and waits for its result.

        Raises what ``work`` raises; WorkerError ``worker_killed``, ``out_of_memory`` or ``timed_out``; or StoppedError. The time in which
        this process was stopped does not count for the time-out.
        """
        for last_try in (False, True):
            with counted_lock(self.slots):
                try:
                    return self._run_once(work, timeout_seconds, args, kwargs)
                except CancelledError as error:
                    raise StoppedError from error
                except BrokenProcessPool as error:  # a process was killed while it held a lock that all of them share
                    self._stop.check()
                    if last_try:
                        raise WorkerError("worker_killed", f"the processes ended twice ({error})") from error
                except pebble.ProcessExpired as error:
                    self._stop.check()
                    memory = self._memories.get(error.pid)
                    if memory is not None and memory.exceeded:
                        raise WorkerError(
                            "out_of_memory", f"the process that decoded it was ended: {memory.exceeded}"
                        ) from error
                    # another process may have used up the memory: the work is tried once more in another process
                    if last_try:
                        cause = _exit(error.exitcode)
                        raise WorkerError("worker_killed", f"the process was killed twice ({cause})") from error
        raise AssertionError("the loop returns or raises")

    def _run_once(
        self, work: Callable[..., T], timeout_seconds: float, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> T:
        number = next(self._numbers)
        with self._pids_lock:
            self._pid_of[number] = None

        def is_over(step_seconds: float) -> bool:
            if _is_done(future, step_seconds):
                return True
            self._stop.check()
            if not pool.active:  # a broken pool drops the work that has not started
                raise BrokenProcessPool("the pool broke")
            return False

        try:
            pool, future = self._schedule(number, work, args, kwargs)
            with self._stop.calling(future.cancel):  # stopping the pool alone would not end the wait
                if wait_awake(is_over, timeout_seconds):
                    return cast("T", future.result())
                self._end(number, future)
        finally:
            with self._pids_lock:
                del self._pid_of[number]
        raise WorkerError("timed_out", f"took longer than {timeout_seconds:.0f} s and was ended")

    def _end(self, number: int, future: Future[object]) -> None:
        """Kills the process of a job, and waits until it has ended. SIGKILL also ends suspended processes."""
        with self._pids_lock:
            pid = self._pid_of[number]
            busy = set(self._pid_of.values())
        if pid is None:  # no process started the work: an idle one that is suspended may have it
            future.cancel()
            own_pids = {child.pid for child in multiprocessing.active_children() if child.pid in self._memories}
            for idle in own_pids - busy:
                if idle is not None and is_suspended(idle):
                    _kill(idle)
            return
        _kill(pid)
        wait_awake(lambda step: _is_done(future, step), END_SECONDS)

    def _schedule(
        self, number: int, work: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[pebble.ProcessPool, Future[object]]:
        with self._lock:
            self._stop.check()
            if not self._pool.active:  # a killed process can break the pool
                self._pool.stop()  # type: ignore[no-untyped-call]
                self._pool.join()
                self._pool = self._new_pool()
            future: Future[object] = self._pool.schedule(_job, args=(number, work, args, kwargs))
            return self._pool, future

    def _new_pool(self) -> pebble.ProcessPool:
        return pebble.ProcessPool(
            max_workers=self.num_workers,
            max_tasks=MAX_JOBS_PER_PROCESS,
            context=self._context,
            initializer=_start,
            initargs=(self._tell_pid, self._temporary),
        )

    def close(self) -> None:
        """Ends the processes, also if they are working."""
        self._stop.set()
        with self._lock:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()
            self._tell_pid.close()

    def _listen(self, pids: Connection[Any, tuple[int, int | None]]) -> None:
        """Receives the id of each process when it starts and when it begins a job, until the pool is closed."""
        with pids, contextlib.suppress(EOFError):
            while True:
                pid, number = pids.recv()
                if number is None:
                    self._memories[pid] = watch_memory(pid, self.memory_bytes)
                    continue
                with self._pids_lock:
                    if number in self._pid_of:  # a short job may have ended before its message is read
                        self._pid_of[number] = pid


def _is_done(future: Future[object], seconds: float) -> bool:
    """Waits up to ``seconds``; whether the job has ended. Raises CancelledError."""
    try:
        future.exception(timeout=seconds)
    except TimeoutError:
        return False
    return True


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _context() -> ForkServerContext:
    """Workers are forked from a server process that has imported the libraries, so that they start fast and share memory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    _choose_folder_of_sockets()
    resource_tracker.ensure_running()  # first, because it unblocks signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C would end the server while it loads
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _choose_folder_of_sockets() -> None:
    """Makes multiprocessing put the server's socket into a folder that is removed if this process is killed. It chooses the folder once."""
    before = tempfile.tempdir
    tempfile.tempdir = str(socket_folder())
    try:
        get_temp_dir()
    finally:
        tempfile.tempdir = before


def _start(tell_pid: Connection[tuple[int, int | None], Any], temporary: Path | None) -> None:
    if temporary is not None:
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    _die_with_the_server()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole process group: the parent handles it
    threading.Thread(target=end_with_parent, name="end-with-parent", daemon=True).start()
    _TELL.append(tell_pid)
    tell_pid.send((os.getpid(), None))


_TELL: list[Connection[tuple[int, int | None], Any]] = []
"""In a worker process: the pipe to the build. It has one item."""


def _job(number: int, work: Callable[..., T], args: tuple[object, ...], kwargs: Mapping[str, object]) -> T:
    """Runs ``work`` in a worker process. Errors that cannot be pickled are replaced by a RuntimeError with their text."""
    _TELL[0].send((os.getpid(), number))
    try:
        return work(*args, **kwargs)
    except MemoryError as error:
        raise WorkerError("out_of_memory", f"the process that decoded it got no more memory: {error}") from error
    except Exception as error:
        if not _can_be_sent(error):  # an error that cannot be unpickled would break the pool
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise


def _can_be_sent(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001 - the classes are those of any library
        return False


def _die_with_the_server() -> None:
    """Makes the kernel kill this process when the fork server ends, so that it ends even if it is suspended. Linux only.

    The server ends when no process holds its pipe any more. By default that includes the workers, so the pipe is closed here; then the
    server ends with the build.
    """
    server = vars(forkserver)["_forkserver"]
    if sys.platform.startswith("linux") and (pipe := getattr(server, "_forkserver_alive_fd", None)) is not None:
        os.close(pipe)
        server._forkserver_alive_fd = None
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_parent() -> None:
    """Ends this process when its parent ends, also if the parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _exit(exitcode: int) -> str:
    if exitcode == -signal.SIGKILL:
        return "SIGKILL: often too little memory, try fewer workers"
    return signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
