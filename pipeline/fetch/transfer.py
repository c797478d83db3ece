"""A transfer under watch: it ends when it stalls, takes too long or grows too big, even while its code is blocked.

The work runs in a thread of its own. The watcher stops it by shutting down its connection or killing its child process;
a thread that does not notice even that is left behind (it is a daemon, and its limits are those of its sockets).
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
    """What a pool can hold."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)

GRACE_SECONDS = 1.0
"""How long a stopped transfer may take to notice."""
PARTIAL = 206
_PART = re.compile(r"\s*bytes\s+(\d+)-(\d+)/(\d+|\*)")
MAX_TEXT_BYTES = 64 << 20
"""A page that is read whole into memory may be this large."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a transfer may take. None: no limit."""

    stall_seconds: float
    min_bytes_per_second: float
    """Slower than this for ``stall_seconds``, counting only the time spent waiting for bytes, is stalled."""
    deadline: float | None
    """In :func:`pipeline.runtime.awake.awake_seconds`, as all times here: a laptop that slept is no stall."""
    max_bytes: int | None


class _Window:
    """The current stretch of ``stall_seconds`` and the bytes at its begin."""

    def __init__(self) -> None:
        self.began = 0.0
        self.bytes_then = 0

    def is_too_slow(self, seconds: float, num_bytes: int, limits: Limits) -> bool:
        elapsed_seconds = seconds - self.began
        if elapsed_seconds < limits.stall_seconds:
            return False
        came = num_bytes - self.bytes_then
        self.began, self.bytes_then = seconds, num_bytes
        return came < max(limits.min_bytes_per_second * elapsed_seconds, 1)


class Watch:
    """Counts the bytes of one transfer and ends it when a limit is passed. ``folder`` is where its files grow."""

    def __init__(self, limits: Limits, folder: Path) -> None:
        self.limits = limits
        self.folder = folder
        self.received = 0
        self.network_error: Exception | None = None
        """The last error that the network gave: some libraries keep only its text."""
        self.stopped: HearscapeError | None = None
        self._waited: tuple[float, float | None] = (0.0, None)
        """Seconds spent in waits that are over; when the present one began."""
        self._network = _Window()
        self._child_window: _Window | None = None
        self._children: list[subprocess.Popen[Any]] = []
        self._responses: list[Any] = []

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around everything that waits for bytes."""
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
        """A response whose body may now be read; it is closed when the transfer ends."""
        self._responses = [known for known in self._responses if not known.closed]
        self._responses.append(response)

    def child_started(self, process: subprocess.Popen[Any]) -> None:
        """A process that works on this transfer by itself. While it lives, its bytes are what grows in the folder."""
        self._children = [child for child in self._children if child.poll() is None] + [process]
        self._child_window = None
        if self.stopped is not None:
            process.kill()

    def tick(self) -> None:
        """Look at the limits; sets ``stopped``."""
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
                f"next to nothing came for {limits.stall_seconds:g} s: fewer than "
                f"{max(limits.min_bytes_per_second, 1):g} bytes a second, {received} bytes in all",
            )

    def stop(self) -> None:
        """Make blocked reads return and child processes end."""
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
    """``request``: a link, or one of yt-dlp's. Raises TransientDownloadError where all was asked for and the server says itself that
    it gives a part."""
    match = _PART.match(response.headers.get("Content-Range") or "")
    if response.status != PARTIAL or match is None or (not isinstance(request, str) and "Range" in request.headers):
        return
    first, last, size = match.groups()
    if int(first) > 0 or (size != "*" and int(last) + 1 < int(size)):
        raise TransientDownloadError(
            "truncated", f"the server sent a part only, bytes {first} to {last} of {size}, where it was asked for all"
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
    """``read`` of a response, by way of the watch. Without an amount it reads all, but no more than a page may have."""

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
    """Run ``work`` in a thread of its own; its result or error, or the limit that it passed, or StoppedError."""
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
    except BaseException:  # the waiting thread was interrupted: the work must not go on alone
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
    """Things that are dear to make, for one user at a time. Of too many kinds, the one that was longest idle is closed."""

    MAX_KINDS = 32

    def __init__(self) -> None:
        self._idle: dict[tuple[int, str], list[C]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrowed(self, key: str, make: Callable[[], C]) -> Iterator[C]:
        # the process is part of the key: a fork must not share connections
        place = (os.getpid(), key)
        with self._lock:
            idle = self._idle.setdefault(place, [])
            thing = idle.pop() if idle else None
        if thing is None:
            thing = make()
        try:
            yield thing
        finally:
            with self._lock:
                idle = self._idle.pop(place, [])
                self._idle[place] = [*idle, thing]  # the last one of the dict
                surplus = self._idle.pop(next(iter(self._idle))) if len(self._idle) > self.MAX_KINDS else []
            for old in surplus:
                old.close()

    def close(self) -> None:
        """Close all that are idle."""
        with self._lock:
            for thing in itertools.chain.from_iterable(self._idle.values()):
                thing.close()
            self._idle.clear()
