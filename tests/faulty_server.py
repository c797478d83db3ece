"""A real HTTP server on loopback that misbehaves on demand.

    with FaultyServer() as server:
        url = server.serve("/rain.mp4", Answer(status=503), Answer(body=video))
        ...
        assert server.hits("/rain.mp4") == 2

Each path has a list of answers, given in turn; the last one is given for ever. A path without answers is a 404.
``server.disturb(0.3, seed=1)`` spoils that share of all answers, in ways that another try can get over.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Fault(StrEnum):
    """What goes wrong once ``fault_after`` bytes of the body are out."""

    RESET = "reset"
    """The connection is reset (RST)."""
    TRUNCATE = "truncate"
    """The connection ends in good order, short of Content-Length."""
    STALL = "stall"
    """Not a byte more; the connection stays open until the server closes."""
    STALL_BEFORE_HEADERS = "stall_before_headers"
    """Not a byte at all."""
    DRIP = "drip"
    """One byte every ``drip_seconds``."""
    DRIP_HEADERS = "drip_headers"
    """A header line that never ends, one byte every ``drip_seconds``."""
    ENDLESS = "endless"
    """The body again and again, without Content-Length."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    status: int = 200
    body: bytes = b""
    content_type: str | None = "video/mp4"
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None
    fault_after: int = 0
    """Bytes of the body that are sent before the fault."""
    drip_seconds: float = 0.05
    delay_seconds: float = 0.0
    """Wait before the headers, to make requests overlap."""
    body_seconds: float = 0.0
    """Wait between headers and body, to make downloads overlap."""
    ranges: bool = True
    """Whether ``Range`` is honoured."""


def passing_faults(body: bytes) -> list[Answer]:
    """Faults that may not be there the next time."""
    half = len(body) // 2
    return [
        Answer(status=500),
        Answer(status=503, headers={"Retry-After": "0"}),
        Answer(status=429, headers={"Retry-After": "0"}),
        Answer(status=408),
        Answer(body=body, fault=Fault.RESET, fault_after=0),
        Answer(body=body, fault=Fault.RESET, fault_after=half),
        Answer(body=body, fault=Fault.TRUNCATE, fault_after=half),
        Answer(body=body, fault=Fault.STALL, fault_after=half),
        Answer(fault=Fault.STALL_BEFORE_HEADERS),
    ]


@dataclass(frozen=True, slots=True)
class Hit:
    """One request as it came in. ``path`` is raw, as in the request line."""

    method: str
    path: str
    headers: Mapping[str, str]
    started: float


class FaultyServer:
    """Threads, real sockets, 127.0.0.1, a free port."""

    def __init__(self) -> None:
        self.requests: list[Hit] = []
        self.max_concurrent = 0
        """Most requests that waited for their answer at the same time. One whose answer is on its way is not counted: who asked
        may have all of it, and ask again, before the server's thread has noticed that it is done."""
        self._answers: dict[str, list[Answer]] = {}
        self._disturbance: tuple[float, int] = (0.0, 0)
        self._asked: Counter[str] = Counter()
        self.num_spoilt = 0
        """Answers that were faulty because of :meth:`disturb`."""
        self._concurrent = 0
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def serve(self, path: str, *answers: Answer) -> str:
        """Set the answers of ``path`` (raw, percent-encoded, with its query) and return its URL."""
        assert answers
        with self._lock:
            self._answers[path] = list(answers)
        return self.url(path)

    def disturb(self, share: float, seed: int) -> None:
        """From now on, that share of the answers to paths with a good one (200) is faulty: which, seed and path decide."""
        with self._lock:
            self._disturbance = (share, seed)
            self._asked.clear()

    def hits(self, path: str | None = None) -> int:
        """Number of requests so far, of one path or of all."""
        with self._lock:
            return sum(path in (None, hit.path) for hit in self.requests)

    def hits_by_path(self) -> Counter[str]:
        with self._lock:
            return Counter(hit.path for hit in self.requests)

    def next_answer(self, path: str) -> Answer:
        with self._lock:
            answers = self._answers.get(path)
            if answers is None:
                return Answer(status=404, body=b"no such page", content_type="text/plain")
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            share, seed = self._disturbance
            self._asked[path] += 1
            rng = random.Random(f"{seed} {path} {self._asked[path]}")
            if answer.status != 200 or answer.fault is not None or rng.random() >= share:
                return answer
            self.num_spoilt += 1
            return rng.choice(passing_faults(answer.body))

    @contextlib.contextmanager
    def counted(self, hit: Hit) -> Iterator[None]:
        with self._lock:
            self.requests.append(hit)
            self._concurrent += 1
            self.max_concurrent = max(self.max_concurrent, self._concurrent)
        try:
            yield
        finally:
            with self._lock:
                self._concurrent -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    owner: FaultyServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        owner = self.server.owner
        hit = Hit(self.command, self.path, dict(self.headers), time.monotonic())
        with owner.counted(hit):
            answer = owner.next_answer(self.path)
            owner.closing.wait(answer.delay_seconds)
        self.answer(answer)

    do_HEAD = do_GET

    def answer(self, answer: Answer) -> None:
        if answer.fault is Fault.STALL_BEFORE_HEADERS:
            self.server.owner.closing.wait()
            self.close_connection = True
            return
        if answer.fault is Fault.DRIP_HEADERS:
            self.drip(b"HTTP/1.1 200 OK\r\nX-Endless: ", b"a", answer.drip_seconds)
            return
        status, body, headers = self.ranged(answer)
        self.send_response(status)
        if answer.content_type is not None:
            self.send_header("Content-Type", answer.content_type)
        for name, value in headers.items():
            self.send_header(name, value)
        if answer.fault is Fault.ENDLESS:
            self.send_header("Connection", "close")
        elif "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.owner.closing.wait(answer.body_seconds)
        self.send_body(answer, body)

    def ranged(self, answer: Answer) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers, cut to the wanted range where there is one."""
        headers = dict(answer.headers)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if answer.status != 200 or answer.fault or not answer.ranges or wanted is None:
            return answer.status, answer.body, headers
        size = len(answer.body)
        first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
        if first >= size:
            return 416, b"", {**headers, "Content-Range": f"bytes */{size}"}
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return 206, answer.body[first : last + 1], headers

    def send_body(self, answer: Answer, body: bytes) -> None:
        match answer.fault:
            case None:
                self.wfile.write(body)
            case Fault.ENDLESS:
                self.close_connection = True
                while not self.server.owner.closing.is_set():
                    self.wfile.write(body)
            case Fault.DRIP:
                self.drip(body[: answer.fault_after], body[answer.fault_after :] or b"\0", answer.drip_seconds)
            case fault:
                self.wfile.write(body[: answer.fault_after])
                self.wfile.flush()
                self.close_connection = True
                if fault is Fault.STALL:
                    self.server.owner.closing.wait()
                elif fault is Fault.RESET:
                    linger_on_no_seconds = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_on_no_seconds)
                    self.connection.close()

    def drip(self, start: bytes, rest: bytes, seconds: float) -> None:
        """``start`` at once, then ``rest`` again and again, byte by byte."""
        self.close_connection = True
        self.wfile.write(start)
        while not self.server.owner.closing.is_set():
            for byte in rest:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.server.owner.closing.wait(seconds):
                    return
