"""What a link points to: which video, at which place it may be fetched, and whether two links are the same."""

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
"""Like :data:`_WATCH_URL` the common case, which needs no taking apart: two shortcuts, no rules of their own."""


def scheme_of(link: str) -> str | None:
    """The scheme before ``://`` in lower case, or None for a local path.

    Of a chain (``zip://a.mp4::s3://bucket/b.zip``) the first.
    """
    match = _SCHEME.match(link)
    return match[1].lower() if match else None


@functools.cache
def known_schemes() -> frozenset[str]:
    """``http``, ``https`` and every protocol that fsspec knows by name."""
    return frozenset({"http", "https", *fsspec.available_protocols()})


def youtube_url(video_id: str) -> str:
    return f"https://www.youtube.com/watch?v={video_id}"


def youtube_id(url: str) -> str | None:
    """The id of the one video that a YouTube link shows, in any form of such links. None: no such link."""
    parts = urlsplit(url)
    return _youtube_id(parts) if parts.scheme in _DEFAULT_PORT else None


def _youtube_id(parts: SplitResult) -> str | None:
    host = parts.hostname or ""
    if not _YOUTUBE_HOST.fullmatch(host):
        return None
    if host.endswith("youtu.be"):
        found = parts.path.strip("/")
    elif parts.path.rstrip("/") == "/watch":
        found = parse_qs(parts.query).get("v", [""])[0]
    else:
        match = _YOUTUBE_PATH.match(parts.path)
        found = match[1] if match else ""
    return found if YOUTUBE_ID.fullmatch(found) else None


def canonical_url(url: str) -> str:
    """One spelling for links that surely lead to the same file: two are duplicates if this is equal.

    Scheme and host in lower case, no default port, no fragment, one form for each YouTube video. The rest is left as it
    is: servers may tell apart what looks alike. What is no http(s) link comes back unchanged, but for ``file://``.
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
    """What is wrong with a link, and what to write instead. None: nothing that can be seen without fetching it."""
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
        return f"{url!r} holds a space or a control character: write a space as %20"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"{url!r} is not a URL ({error})"
    return None if host else f"{url!r} names no host"
