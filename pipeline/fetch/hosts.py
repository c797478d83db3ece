"""Manners towards the hosts that are downloaded from: few at once, not too often, and silence when one says no.

A host that answers "sign in to confirm you're not a bot", or 429 several times in a row, is paused: what comes next
fails at once, as transient. When the pause is over, one download goes first; what it is told ends the
pause or begins another.
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
    """Host and port as far as limits are concerned: ``www.``, ``m.`` and youtu.be are no hosts of their own."""
    netloc = urlsplit(url).netloc.rpartition("@")[2].lower()
    host = netloc.removeprefix("www.").removeprefix("m.")
    return "youtube.com" if host == "youtu.be" else host


@dataclass(slots=True)
class _Host:
    running: int = 0
    refusals: int = 0
    """Refusals since the last good answer."""
    paused_until: float | None = None
    """Monotonic time. In the past: the next visitor finds out whether the pause is over. None: not paused."""
    pause_cause: str = ""
    next_start: float = 0.0


class Visit:
    """One download's stay at a host. It tells the gate how the host answered."""

    def __init__(self, gate: HostGate, host: str) -> None:
        self.host = host
        self._gate = gate

    def answered(self) -> None:
        """The host gave what was asked, or said plainly that it has not got it."""
        self._gate.answered(self.host)

    def refused(self, cause: str, *, at_once: bool = False, retry_after_seconds: float | None = None) -> bool:
        """The host wants no more. Returns whether it is paused now, at once if ``at_once``."""
        return self._gate.refused(self.host, cause, at_once=at_once, retry_after_seconds=retry_after_seconds)


class HostGate:
    """Shared by all threads of a build.

    ``max_per_host``: downloads at once. ``pause_after``: refusals in a row that pause a host, for ``pause_seconds`` or
    what the host itself asks for, whichever is longer. ``spacing_seconds``: least time between two starts.
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
        """Wait for a free place. Raises TransientDownloadError ``host_paused`` while the host is paused, and StoppedError."""
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
                "host_paused", f"{name} is left alone for another {left:.0f} s, because it answered: {host.pause_cause}"
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
