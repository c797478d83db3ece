"""A web server on loopback for a folder of synthetic sources. It answers range requests, which yt-dlp and ffmpeg send."""

from __future__ import annotations

import functools
import io
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.runtime.ranges import byte_range

logger = logging.getLogger(__name__)

_TYPES = {".mp4": "video/mp4", ".m4a": "audio/mp4", ".mov": "video/quicktime", ".mkv": "video/x-matroska"}


class _FileHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def guess_type(self, path: str | os.PathLike[str]) -> str:
        return _TYPES.get(Path(path).suffix.lower()) or super().guess_type(path)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("%s %s", self.client_address[0], format % args)

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Answers a range request with 206, or with 416 if it lies outside the file; others as the base class does."""
        path = Path(self.translate_path(self.path))
        if "Range" not in self.headers or not path.is_file():
            return super().send_head()
        size = path.stat().st_size
        span = byte_range(self.headers["Range"], size)
        if span is None:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        start, end, partial = span
        if not partial:
            return super().send_head()
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            return io.BytesIO(file.read(end - start))

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        try:
            super().copyfile(source, outputfile)
        except (BrokenPipeError, ConnectionResetError):
            logger.debug("the client closed the connection during %s", self.path)
            self.close_connection = True


class _FileServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a connection from %s ended early", client_address)


def make_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of ``folder`` on 127.0.0.1, not yet started. Port 0: any free port."""
    return _FileServer(("127.0.0.1", port), functools.partial(_FileHandler, directory=os.fspath(folder)))


def base_url(server: ThreadingHTTPServer) -> str:
    """The URL of a server, with a slash at its end."""
    return f"http://127.0.0.1:{server.server_address[1]}/"


@contextmanager
def serve_folder(folder: Path, port: int = 0) -> Iterator[str]:
    """Serves a folder on loopback while the block runs; yields the base URL. Port 0: any free port."""
    server = make_server(folder, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="sources", daemon=True)
    thread.start()
    try:
        yield base_url(server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
