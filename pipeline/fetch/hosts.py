"""Limits requests to each host: the number of downloads at once, the time between them, and a pause after refusals.

A host that answers "sign in to confirm you're not a bot", or several times in a row with status 429, is paused: further downloads fail
at once with a transient error. After the pause one download is tried first; its answer ends the pause or begins another one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.errors import TransientDownloadError
from pipeline.runtime.stop import Stop
from pipeline.runtime.waiting import waiting


def host_of(url: str) -> str:
    """Host and port that the limits apply to. ``www.`` and ``m.`` are removed, and youtu.be is youtube.com."""
    netloc = urlsplit(url).netloc.rpartition("@")[2].lower()
    host = netloc.removeprefix("www.").removeprefix("m.")
    return "youtube.com" if host == "youtu.be" else host


@dataclass(slots=True)
class _Host:
    running: int = 0
    refusals: int = 0
    """Refusals since the last answer."""
    paused_until: float | None = None
    """Monotonic time. If it is in the past, the next download is a trial. None: not paused."""
    pause_cause: str = ""
    next_start: float = 0.0


class Visit:
    """One download from a host. It reports the host's answers to the gate."""

    def __init__(self, gate: HostGate, host: str) -> None:
        self.host = host
        self._gate = gate

    def answered(self) -> None:
        """The host sent the file, or a definite answer such as 404."""
        self._gate.answered(self.host)

    def refused(self, cause: str, *, at_once: bool = False, retry_after_seconds: float | None = None) -> bool:
        """The host refused the request. ``at_once``: pause it now. Returns whether the host is paused."""
        return self._gate.refused(self.host, cause, at_once=at_once, retry_after_seconds=retry_after_seconds)


class HostGate:
    """The limits of all hosts, shared by all threads of a build.

    ``max_per_host``: downloads at once. ``pause_after``: refusals in a row after which a host is paused, for ``pause_seconds`` or the
    time that the host asks for, whichever is longer. ``spacing_seconds``: shortest time between two starts.
    """

    def __init__(
        self,
        max_per_host: int = 4,
        pause_after: int = 3,
        pause_seconds: float = 300.0,
        spacing_seconds: float = 0.0,
    ) -> None:
        self.max_per_host = max_per_host
        self.pause_after = pause_after
        self.pause_seconds = pause_seconds
        self.spacing_seconds = spacing_seconds
        self._hosts: dict[str, _Host] = {}
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def visit(self, url: str, stop: Stop | None = None) -> Iterator[Visit]:
        """Waits for a free place at the host. Raises TransientDownloadError ``host_paused`` while the host is paused, and StoppedError."""
        stop = stop or Stop()
        name = host_of(url)
        with stop.calling(self._wake), self._changed:
            host = self._hosts.setdefault(name, _Host())
            with waiting():
                while self._is_full(name, host):
                    self._changed.wait()
                    stop.check()
            host.running += 1
            start = max(time.monotonic(), host.next_start)
            host.next_start = start + self.spacing_seconds
        try:
            with waiting():
                stop.sleep(max(start - time.monotonic(), 0))
            yield Visit(self, name)
        finally:
            with self._changed:
                host.running -= 1
                self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _is_full(self, name: str, host: _Host) -> bool:
        if host.paused_until is None:
            return host.running >= self.max_per_host
        left = host.paused_until - time.monotonic()
        if left > 0:
            raise TransientDownloadError(
                "host_paused", f"{name} is paused for another {left:.0f} s, because it answered: {host.pause_cause}"
            )
        return host.running > 0

    def answered(self, name: str) -> None:
        with self._changed:
            host = self._hosts[name]
            host.refusals = 0
            host.paused_until = None
            self._changed.notify_all()

    def refused(self, name: str, cause: str, *, at_once: bool, retry_after_seconds: float | None) -> bool:
        with self._changed:
            host = self._hosts[name]
            host.refusals += 1
            if at_once or host.paused_until is not None or host.refusals >= self.pause_after:
                pause = max(self.pause_seconds, retry_after_seconds or 0.0)
                host.paused_until = time.monotonic() + pause
                host.pause_cause = cause
                self._changed.notify_all()
            return host.paused_until is not None
