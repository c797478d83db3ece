"""A small HTTP proxy on loopback that checks the address of every connection (:mod:`pipeline.fetch.addresses`).

ffmpeg needs it, because ffmpeg follows redirects and playlists itself.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import socketserver
import sys
import threading
from typing import Any
from urllib.parse import urlsplit

from pipeline.fetch.addresses import Reach, RefusedAddressError, host_and_port

LOG = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 << 10
"""Largest request line with header fields."""
BLOCK_BYTES = 256 << 10
IDLE_SECONDS = 120.0
"""Time without data after which a connection is closed. The download's own limits are shorter."""


class CheckingProxy:
    """The proxy. It runs until it is closed. ``url``: the value of ``http_proxy`` for ffmpeg."""

    def __init__(self, reach: Reach, connect_seconds: float) -> None:
        self._server = _ProxyServer(("127.0.0.1", 0), _ProxyHandler)
        self._server.reach, self._server.connect_seconds = reach, connect_seconds
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="checking-proxy", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _ProxyServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    reach: Reach
    connect_seconds: float

    def handle_error(self, request: Any, client_address: Any) -> None:
        LOG.debug("a connection through the checking proxy broke: %s", sys.exception())


class _ProxyHandler(socketserver.BaseRequestHandler):
    server: _ProxyServer
    request: socket.socket

    def handle(self) -> None:
        self.request.settimeout(IDLE_SECONDS)
        head, body_start = self._head()
        request_line, _, fields = head.partition(b"\r\n")
        words = request_line.decode("latin-1").split(" ")
        if len(words) != 3:
            return self._answer("400 Bad Request")
        method, target, version = words
        is_tunnel = method == "CONNECT"
        address = host_and_port(f"https://{target}" if is_tunnel else target)
        if address is None or not (is_tunnel or target.lower().startswith("http://")):
            return self._answer("400 Bad Request")
        try:
            upstream = self.server.reach.connect(*address, self.server.connect_seconds)
        except RefusedAddressError:
            return self._answer("403 Forbidden")
        except OSError as error:
            LOG.debug("%s:%d: %s", *address, error)
            return self._answer("502 Bad Gateway")
        with upstream:
            if is_tunnel:
                self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                upstream.sendall(body_start)
            else:
                upstream.sendall(_forwarded_head(method, target, version, fields) + body_start)
            _relay(self.request, upstream)
        return None

    def _head(self) -> tuple[bytes, bytes]:
        """The request line and header fields, and the bytes received after them. Empty if the request is incomplete or too long."""
        head = b""
        while b"\r\n\r\n" not in head:
            block = self.request.recv(BLOCK_BYTES)
            head += block
            if not block or len(head) > MAX_HEAD_BYTES:
                return b"", b""
        lines, _, body_start = head.partition(b"\r\n\r\n")
        return lines, body_start

    def _answer(self, status: str) -> None:
        with contextlib.suppress(OSError):
            self.request.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


def _forwarded_head(method: str, target: str, version: str, fields: bytes) -> bytes:
    """The request line and header fields in the form that a server expects, without those meant for the proxy.

    ``Connection: close`` is added, because the next request may be for another host.
    """
    parts = urlsplit(target)
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    forwarded_fields = [
        field
        for field in fields.split(b"\r\n")
        if field.partition(b":")[0].strip().lower() not in (b"connection", b"proxy-connection", b"proxy-authorization")
    ]
    return b"\r\n".join(
        [f"{method} {path} {version}".encode("latin-1"), *forwarded_fields, b"Connection: close", b"", b""]
    )


def _relay(client: socket.socket, upstream: socket.socket) -> None:
    """Copies in both directions until the server closes its side. The client may close its side earlier."""
    upstream.settimeout(IDLE_SECONDS)
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, upstream)
        selector.register(upstream, selectors.EVENT_READ, client)
        while ready := selector.select(IDLE_SECONDS):
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                try:
                    block = key.fileobj.recv(BLOCK_BYTES)
                    if block:
                        key.data.sendall(block)
                    elif key.fileobj is upstream:
                        return
                    else:
                        selector.unregister(client)
                        upstream.shutdown(socket.SHUT_WR)
                except OSError:
                    return
