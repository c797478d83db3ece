"""Parses links: scheme, YouTube id, canonical form, problems."""

from __future__ import annotations

import difflib
import functools
import re
from urllib.parse import SplitResult, parse_qs, urlsplit

import fsspec

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WEB_HOST = re.compile(r"(?:www\.|m\.|music\.)?(?:youtube\.com|youtu\.be|vimeo\.com)/|www\.[a-z0-9-]+\.", re.IGNORECASE)
_YOUTUBE_HOST = re.compile(r"(?:www\.|m\.|music\.)?youtube(?:-nocookie)?\.com|(?:www\.)?youtu\.be")
_YOUTUBE_PATH = re.compile(r"/(?:shorts|embed|live|v|e)/([^/]+)")
_DEFAULT_PORT = {"http": 80, "https": 443}
_WATCH_URL = re.compile(r"https?://(?:www\.|m\.|music\.)?youtube\.com/watch\?v=([A-Za-z0-9_-]{11})(?:[&#].*)?")
_PLAIN_URL = re.compile(r"https?://([a-z0-9-]+(?:\.[a-z0-9-]+)*)/[!-\"$-~]*")
"""Like :data:`_WATCH_URL` a common case that need not be parsed. Both are shortcuts that do not change the result."""


def scheme_of(link: str) -> str | None:
    """The scheme before ``://`` in lower case. None: a local path.

    For a chain (``zip://a.mp4::s3://bucket/b.zip``) it is the first scheme.
    """
    match = _SCHEME.match(link)
    return match[1].lower() if match else None


@functools.cache
def known_schemes() -> frozenset[str]:
    """``http``, ``https`` and all protocols of fsspec."""
    return frozenset({"http", "https", *fsspec.available_protocols()})


def youtube_url(video_id: str) -> str:
    return f"https://www.youtube.com/watch?v={video_id}"


def youtube_id(url: str) -> str | None:
    """The id of the video of a YouTube link, in any form of such links. None: it is no link to one video."""
    parts = urlsplit(url)
    return _youtube_id(parts) if parts.scheme in _DEFAULT_PORT else None


def _youtube_id(parts: SplitResult) -> str | None:
    host = parts.hostname or ""
    if not _YOUTUBE_HOST.fullmatch(host):
        return None
    if host.endswith("youtu.be"):
        video_id = parts.path.strip("/")
    elif parts.path.rstrip("/") == "/watch":
        video_id = parse_qs(parts.query).get("v", [""])[0]
    else:
        match = _YOUTUBE_PATH.match(parts.path)
        video_id = match[1] if match else ""
    return video_id if YOUTUBE_ID.fullmatch(video_id) else None


def canonical_url(url: str) -> str:
    """The canonical form of a link. Two links with equal canonical forms lead to the same file.

    Scheme and host are in lower case, a default port and the fragment are removed, and all links to a YouTube video have one form. The
    rest is not changed, because servers may distinguish it. Other links than http(s) are returned unchanged, except ``file://``.
    """
    if url.startswith("file:///"):
        return url.removeprefix("file://")
    plain = _PLAIN_URL.fullmatch(url)
    if (plain and "youtu" not in plain[1]) or url[:4].lower() != "http":
        return url
    if watch := _WATCH_URL.fullmatch(url):
        return youtube_url(watch[1])
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORT:
        return url
    if video := _youtube_id(parts):
        return youtube_url(video)
    user = parts.netloc.rpartition("@")[0]
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = "" if parts.port in (None, _DEFAULT_PORT[parts.scheme]) else f":{parts.port}"
    netloc = f"{user}@{host}{port}" if user else host + port
    return parts._replace(netloc=netloc, path=parts.path or "/", fragment="").geturl()


def problem_with_url(url: str) -> str | None:
    """The problem of a link, with what to write instead. None: none that can be found without fetching it."""
    scheme = scheme_of(url)
    if scheme is None:
        if YOUTUBE_ID.fullmatch(url):
            return f"{url!r} is a bare YouTube id, not a URL: write {youtube_url(url)}"
        if _WEB_HOST.match(url):
            return f"{url!r} has no scheme: write https://{url}"
        return f"{url!r} is not a URL: put a local file into the column 'path', or begin it with '/' or './'"
    if scheme not in known_schemes():
        near = difflib.get_close_matches(scheme, ["https", "http", *sorted(known_schemes())], n=1)
        hint = (
            f"; did you mean {near[0]}://?" if near else ": use http, https or a protocol of fsspec (s3, gs, file, ...)"
        )
        return f"unknown scheme {scheme}:// in {url!r}{hint}"
    return _problem_with_web_url(url) if scheme in _DEFAULT_PORT and not _PLAIN_URL.fullmatch(url) else None


def _problem_with_web_url(url: str) -> str | None:
    if " " in url or not url.isprintable():
        return f"{url!r} contains a space or a control character: write a space as %20"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"{url!r} is not a URL ({error})"
    return None if host else f"{url!r} has no host"
