"""Watches a transfer and ends it when it stalls, takes too long or becomes too large, even while its code is blocked.

The transfer runs in another thread. The watcher stops it by shutting down its connections or killing its child processes. A thread
that does not end then is left behind: it is a daemon thread, and the time-outs of its sockets apply.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pipeline.errors import DownloadError, HearscapeError, StoppedError, TransientDownloadError
from pipeline.runtime.awake import awake_seconds
from pipeline.runtime.stop import Stop

T = TypeVar("T")


class Closable(Protocol):
    """An object of a :class:`Pool`."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)

GRACE_SECONDS = 1.0
"""How long to wait until a stopped transfer has ended."""
PARTIAL = 206
_PART = re.compile(r"\s*bytes\s+(\d+)-(\d+)/(\d+|\*)")
MAX_TEXT_BYTES = 64 << 20
"""Largest page that is read into memory as a whole."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a transfer. None: no limit."""

    stall_seconds: float
    min_bytes_per_second: float
    """A transfer that is slower for ``stall_seconds`` is stalled. Only the time of waiting for bytes counts."""
    deadline: float | None
    """In :func:`pipeline.runtime.awake.awake_seconds`, like all times here, so that a sleeping laptop causes no stall."""
    max_bytes: int | None


class _Window:
    """The current window of ``stall_seconds``: its start, and the number of bytes at its start."""

    def __init__(self) -> None:
        self.start_seconds = 0.0
        self.bytes_at_start = 0

    def is_too_slow(self, seconds: float, num_bytes: int, limits: Limits) -> bool:
        """Whether the window that ends now was too slow. Begins a new window if it has ended."""
        elapsed_seconds = seconds - self.start_seconds
        if elapsed_seconds < limits.stall_seconds:
            return False
        num_received = num_bytes - self.bytes_at_start
        self.start_seconds, self.bytes_at_start = seconds, num_bytes
        return num_received < max(limits.min_bytes_per_second * elapsed_seconds, 1)


class Watch:
    """Counts the bytes of one transfer, and ends it when it exceeds a limit. ``folder``: the folder that it writes to."""

    def __init__(self, limits: Limits, folder: Path) -> None:
        self.limits = limits
        self.folder = folder
        self.received = 0
        self.network_error: Exception | None = None
        """The last error of the network. Some libraries keep only its text."""
        self.stopped: HearscapeError | None = None
        self._waited: tuple[float, float | None] = (0.0, None)
        """Seconds of finished waits, and the start of the current wait. None: not waiting."""
        self._network = _Window()
        self._child_window: _Window | None = None
        self._children: list[subprocess.Popen[Any]] = []
        self._responses: list[Any] = []

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the block as waiting for bytes. Raises the error of a limit that is exceeded."""
        self.check()
        seconds, _ = self._waited
        started = awake_seconds()
        self._waited = (seconds, started)
        try:
            yield
        finally:
            self._waited = (seconds + awake_seconds() - started, None)
        self.check()

    def count(self, num_bytes: int) -> None:
        self.received += num_bytes
        self.check_size(self.received)

    def check_size(self, num_bytes: float | None) -> None:
        limit = self.limits.max_bytes
        if limit is not None and num_bytes is not None and num_bytes > limit:
            raise too_large(num_bytes, limit)

    def check(self) -> None:
        if self.stopped is not None:
            raise self.stopped

    def opened(self, response: Any) -> None:
        """Registers a response whose body will be read. It is closed when the transfer ends."""
        self._responses = [known for known in self._responses if not known.closed]
        self._responses.append(response)

    def child_started(self, process: subprocess.Popen[Any]) -> None:
        """Registers a process that transfers by itself. While it lives, the bytes are counted by the size of the folder."""
        self._children = [child for child in self._children if child.poll() is None] + [process]
        self._child_window = None
        if self.stopped is not None:
            process.kill()

    def tick(self) -> None:
        """Checks the limits, and sets ``stopped`` if one is exceeded."""
        now = awake_seconds()
        limits = self.limits
        if limits.deadline is not None and now > limits.deadline:
            self.stopped = TransientDownloadError("timed_out", "not finished within download.timeout_seconds")
            return
        if any(child.poll() is None for child in self._children):
            received = folder_bytes(self.folder)
            if self._child_window is None:
                self._child_window = _Window()
                self._child_window.is_too_slow(now, received, limits)
            slow = self._child_window.is_too_slow(now, received, limits)
        else:
            received = self.received
            seconds, since = self._waited
            slow = self._network.is_too_slow(seconds + (now - since if since is not None else 0.0), received, limits)
        if limits.max_bytes is not None and received > limits.max_bytes:
            self.stopped = too_large(received, limits.max_bytes)
        elif slow:
            self.stopped = TransientDownloadError(
                "stalled",
                f"too slow for {limits.stall_seconds:g} s: fewer than "
                f"{max(limits.min_bytes_per_second, 1):g} bytes per second, {received} bytes in total",
            )

    def stop(self) -> None:
        """Makes blocked reads return, and kills child processes."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
        for response in self._responses:
            shutdown = getattr(getattr(response, "fp", None), "shutdown", None)
            if shutdown is not None:
                with contextlib.suppress(OSError, ValueError, RuntimeError):  # not connected any more
                    shutdown()

    def close(self) -> None:
        for response in self._responses:
            with contextlib.suppress(OSError, ValueError):
                response.close()


def check_is_whole(request: Any, response: Any) -> None:
    """Raises TransientDownloadError if the whole file was requested and the server declares that it sends a part. ``request``: a link, or a
    request of yt-dlp."""
    match = _PART.match(response.headers.get("Content-Range") or "")
    if response.status != PARTIAL or match is None or (not isinstance(request, str) and "Range" in request.headers):
        return
    first, last, size = match.groups()
    if int(first) > 0 or (size != "*" and int(last) + 1 < int(size)):
        raise TransientDownloadError(
            "truncated",
            f"the server sent bytes {first} to {last} of {size} only, although the whole file was requested",
        )


def too_large(num_bytes: float, limit: int) -> DownloadError:
    return DownloadError("too_large", f"{num_bytes:.0f} bytes or more, over download.max_bytes ({limit})")


def folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def watched_reader(read: Callable[[int], bytes], watch: Watch) -> Callable[..., bytes]:
    """The ``read`` of a response with a watch. Without an amount it reads everything, up to the limit of a page."""

    def read_block(amount: int) -> bytes:
        with watch.waiting():
            block = read(amount)
        watch.count(len(block))
        return block

    def read_watched(amount: int | None = None) -> bytes:
        if amount is not None and amount >= 0:
            return read_block(amount)
        text = bytearray()
        while block := read_block(1 << 20):
            text += block
            if len(text) > MAX_TEXT_BYTES:
                raise DownloadError("not_media", f"a text of more than {MAX_TEXT_BYTES} bytes, not a video")
        return bytes(text)

    return read_watched


def run_watched(work: Callable[[], T], watch: Watch, stop: Stop) -> T:
    """Runs ``work`` in another thread; returns its result. Raises its error, that of an exceeded limit, or StoppedError."""
    stop.check()
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that waits
            errors.append(error)
        finally:
            watch.close()
            done.set()

    threading.Thread(target=run, name="transfer", daemon=True).start()
    tick_seconds = min(0.5, watch.limits.stall_seconds / 4)
    try:
        while not done.wait(tick_seconds):
            watch.tick()
            if stop.is_set():
                watch.stopped = StoppedError()
            if watch.stopped is not None:
                break
    except BaseException:  # this thread was interrupted: the work must not continue
        watch.stopped = StoppedError()
        watch.stop()
        raise
    if watch.stopped is not None:
        watch.stop()
        done.wait(GRACE_SECONDS)
        raise watch.stopped
    if errors:
        raise errors[0]
    return results[0]


class Pool(Generic[C]):
    """A pool of objects that are slow to make, each used by one thread at a time. Objects of the least recently used kind are closed when
    there are more than MAX_KINDS kinds."""

    MAX_KINDS = 32

    def __init__(self) -> None:
        self._idle: dict[tuple[int, str], list[C]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrowed(self, key: str, make: Callable[[], C]) -> Iterator[C]:
        # the process is part of the kind: a forked process must not share connections
        kind = (os.getpid(), key)
        with self._lock:
            idle = self._idle.setdefault(kind, [])
            item = idle.pop() if idle else None
        if item is None:
            item = make()
        try:
            yield item
        finally:
            with self._lock:
                idle = self._idle.pop(kind, [])
                self._idle[kind] = [*idle, item]  # moves the kind to the end of the dict
                surplus = self._idle.pop(next(iter(self._idle))) if len(self._idle) > self.MAX_KINDS else []
            for old in surplus:
                old.close()

    def close(self) -> None:
        """Closes all idle objects."""
        with self._lock:
            for item in itertools.chain.from_iterable(self._idle.values()):
                item.close()
            self._idle.clear()
