"""Serves a report on this machine: the page, and the clips, read by range from the tars without unpacking them.

/                        the page                   /api/clips?…          clips that match a query, as JSON
/clip/RENDITION/KEY.mp4  a kept clip                /strip/KEY.webp       its frames, side by side
/sound/KEY.flac, .wav    its sound, as it was cut,  /spectrum/KEY.webp    its spectrogram
                         or of a rejected one as it was measured
"""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import soundfile

from pipeline.dataset.manifest import FILE_NAME
from pipeline.errors import OutputError
from pipeline.measure.sound import SAMPLE_RATE_HZ
from pipeline.report.clip_files import ClipFiles, ClipPlace, Part
from pipeline.report.facts import read_manifest_if_any
from pipeline.report.gallery import clip_place, rows_of, title_of
from pipeline.report.looks import NUM_FRAMES, spectrum_of, strip_of
from pipeline.report.make import FACTS_NAME, PAGE_NAME, make_report
from pipeline.report.page import as_served
from pipeline.report.query import Query, find
from pipeline.report.tables import Tables
from pipeline.runtime.folder import Folder
from pipeline.runtime.ranges import byte_range
from pipeline.runtime.remote_folder import read_folder

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 18
_TYPES = {"mp4": "video/mp4", "flac": "audio/flac", "wav": "audio/wav", "webp": "image/webp"}
MAX_FRAMES = 12
MAX_PORT = 65535
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServedDataset:
    """A dataset as the server reads it: its page, rows, media and thumbnails. For several threads."""

    def __init__(self, location: str) -> None:
        self.folder = read_folder(location)
        self.manifest = read_manifest_if_any(self.folder)
        self.page = as_served(_page_of(location, self.folder)).encode("utf-8", "replace")
        recipe = self.manifest.recipe if self.manifest else {}
        self.files = ClipFiles(self.folder, self.manifest, recipe)
        self.tables = Tables(self.folder)
        self._lock = threading.Lock()
        self.strip = lru_cache(512)(self._strip)
        self.spectrum = lru_cache(512)(self._spectrum)

    def close(self) -> None:
        self.tables.close()

    def place(self, key: str) -> ClipPlace | None:
        rows = self.tables.rows("SELECT key, source_id, shard, start_ms, end_ms FROM clips WHERE key = ?", [key])
        return clip_place(rows[0]) if rows else None

    def clips(self, query: Query) -> dict[str, Any]:
        """The clips of a query as rows, with titles, and whether each has a strip of frames and a spectrogram."""
        total, keys = find(self.tables, query)
        rows = rows_of(self.tables, keys)
        with self._lock:
            for row in rows:
                place = clip_place(row)
                row["title"] = title_of(self.files.record(place)) if place.shard else None
                row["strip"], row["spectrum"] = self.files.has_frames(place), self.files.has_sound(place)
        return {"total": total, "clips": rows}

    def member(self, key: str, rendition: str, member: str) -> Part | None:
        place = self.place(key)
        with self._lock:
            return self.files.member(place, rendition, member) if place else None

    def wav(self, key: str) -> bytes | None:
        """The sound of a rejected clip as WAV, from its previews. None: they were deleted."""
        place = self.place(key)
        with self._lock:
            sound = self.files.preview_sound(place) if place else None
        if sound is None:
            return None
        content = io.BytesIO()
        soundfile.write(content, sound, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
        return content.getvalue()

    def _strip(self, key: str, num_frames: int) -> bytes | None:
        place = self.place(key)
        with self._lock:
            return strip_of(place, self.files, self.manifest, num_frames) if place else None

    def _spectrum(self, key: str) -> bytes | None:
        place = self.place(key)
        with self._lock:
            return spectrum_of(place, self.files) if place else None


def _page_of(location: str, folder: Folder) -> str:
    """The report's page; it is made first where it is missing or older than the dataset."""
    if not (folder.exists(PAGE_NAME) and _is_of(folder)):
        logger.warning("making the report on %s first", location)
        make_report(location)
    return folder.read_bytes(PAGE_NAME).decode()


def _is_of(folder: Folder) -> bool:
    """Whether the report was made from the dataset's present files."""
    if not folder.exists(FILE_NAME):
        return False
    try:
        facts = json.loads(folder.read_bytes(FACTS_NAME))
        manifest = json.loads(folder.read_bytes(FILE_NAME))
        return bool(facts["made_of"] == [[file["path"], file["sha256"]] for file in manifest["files"]])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


class _ReportHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: ReportServer

    def do_GET(self) -> None:
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):
            logger.debug("the client closed the connection during %s", self.path)
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("%s %s", self.client_address[0], format % args)

    def _answer(self) -> None:
        if not self.server.answers_to(self.headers.get("Host", "")):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this server answers to its own address only\n")
            return
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.split("/")[1:]]
        parameters = dict(parse_qsl(address.query))
        library = self.server.library
        match parts:
            case [""] | ["index.html"] | ["report.html"]:
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", library.page)
            case ["api", "clips"]:
                self._clips(parameters)
            case ["clip", rendition, name] if name.endswith(".mp4"):
                self._part(library.member(name[:-4], rendition, "mp4"), "mp4")
            case ["sound", name] if name.endswith(".flac"):
                renditions = library.files.renditions
                self._part(library.member(name[:-5], renditions[0], "flac") if renditions else None, "flac")
            case ["sound", name] if name.endswith(".wav"):
                self._bytes(library.wav(name[:-4]), "wav")
            case ["strip", name] if name.endswith(".webp"):
                wanted = parameters.get("frames", "")
                num_frames = min(max(int(wanted), 1), MAX_FRAMES) if wanted.isdecimal() else NUM_FRAMES
                self._bytes(library.strip(name[:-5], num_frames), "webp")
            case ["spectrum", name] if name.endswith(".webp"):
                self._bytes(library.spectrum(name[:-5]), "webp")
            case _:
                self._missing()

    def _clips(self, parameters: Mapping[str, str]) -> None:
        try:
            query = Query.model_validate(parameters)
        except ValueError as error:
            self._send(HTTPStatus.BAD_REQUEST, "text/plain", f"{error}\n".encode())
            return
        content = json.dumps(self.server.library.clips(query), ensure_ascii=False).encode("utf-8", "replace")
        self._send(HTTPStatus.OK, "application/json", content)

    def _missing(self) -> None:
        self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such thing here\n")

    def _bytes(self, content: bytes | None, kind: str) -> None:
        if content is None:
            self._missing()
            return
        self._ranged(len(content), kind, lambda start, count: iter([content[start : start + count]]))

    def _part(self, part: Part | None, kind: str) -> None:
        if part is None:
            self._missing()
            return
        try:
            file = self.server.library.folder.open(part.path)
        except OSError as error:
            logger.warning("%s cannot be read: %s", part.path, error)
            self._missing()
            return

        def blocks(start: int, count: int) -> Iterator[bytes]:
            file.seek(part.offset + start)
            while count > 0 and (block := file.read(min(count, _BLOCK_BYTES))):
                count -= len(block)
                yield block

        with file:
            self._ranged(part.num_bytes, kind, blocks)

    def _ranged(self, size: int, kind: str, blocks: Any) -> None:
        """Answers with the whole content (200), the requested range (206), or 416 for a range outside of it."""
        span = byte_range(self.headers.get("Range"), size)
        if span is None:
            self._send(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "text/plain", b"", {"Content-Range": f"bytes */{size}"}
            )
            return
        start, stop, partial = span
        headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=300"}
        if partial:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._head(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK, _TYPES[kind], stop - start, headers)
        if self.command != "HEAD":
            for block in blocks(start, stop - start):
                self.wfile.write(block)

    def _send(self, status: HTTPStatus, kind: str, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, kind, len(content), headers or {})
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, status: HTTPStatus, kind: str, num_bytes: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(num_bytes))
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class ReportServer(ThreadingHTTPServer):
    """A server of one report, not yet started."""

    daemon_threads = True

    def __init__(self, library: ServedDataset, host: str, port: int) -> None:
        self.library = library
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _ReportHandler)
        self.host = host
        self.is_closing = False

    @property
    def url(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.server_address[1]}/"

    def answers_to(self, host: str) -> bool:
        """Whether the request's ``Host`` is accepted: on loopback only loopback's names are.

        That stops DNS rebinding: pages of other sites, whose names resolve to this machine, cannot read the dataset.
        """
        if self.host not in LOOPBACK:
            return True
        return host.rpartition(":")[0].strip("[]") in LOOPBACK or host.strip("[]") in LOOPBACK

    def handle_error(self, request: Any, client_address: Any) -> None:
        is_disconnect = self.is_closing or isinstance(sys.exception(), ConnectionError)
        level = logging.DEBUG if is_disconnect else logging.ERROR
        logger.log(level, "a request of %s failed: %r", client_address, sys.exception())


@contextmanager
def open_report(location: str, host: str = "127.0.0.1", port: int = 0) -> Iterator[ReportServer]:
    """A server of the report on a dataset, port 0: any free one. Makes the report first where it is missing or outdated.

    Raises ReportError and ManifestError as :func:`make_report` does, and OutputError for an invalid or taken port.
    """
    if not 0 <= port <= MAX_PORT:
        raise OutputError(f"port {port} is none: choose one from 1 to {MAX_PORT} with --port, or 0 for a free one")
    library = ServedDataset(location)
    try:
        try:
            server = ReportServer(library, host, port)
        except OSError as error:
            raise OutputError(
                f"port {port} of {host} cannot be listened on: {error.strerror or error}; choose another with --port or --host"
            ) from error
        try:
            yield server
        finally:
            server.is_closing = True
            server.server_close()
    finally:
        library.close()
