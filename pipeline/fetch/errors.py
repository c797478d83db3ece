"""Converts errors of libraries into a DownloadError with a code for grouping and a sentence for people, without secrets.

It uses the texts and attributes of the errors, so that it need not import the libraries.
"""

from __future__ import annotations

import email.utils
import re
import socket
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from pipeline.errors import DownloadError, TransientDownloadError
from pipeline.runtime.folder import DISK_FULL_ERRNOS
from pipeline.runtime.masking import mask_secrets

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PREFIX = re.compile(
    r"^\s*(?:ERROR:\s*|\r?\[download\] Got error:\s*|\[generic\] [^:]*:\s*|Unable to download webpage:\s*"
    r"|HTTPS?Connection(?:Pool)?\(host=[^)]*\):\s*)+"
)
_ADVICE = re.compile(
    r"[;.]?\s*(?:please report this issue on|Confirm you are on the latest version|Use --|See\s+https://github\.com/yt-dlp"
    r"|You might want to use a VPN|If you believe this is an error|\(caused by ).*",
    re.DOTALL | re.IGNORECASE,
)

_ADVICE_COOKIES = "; set download.cookies_file or download.cookies_browser"
_SAYINGS: tuple[tuple[str, bool, str, str], ...] = (
    # code, whether a retry can help, pattern of the site's message, what to do
    ("bot_check", True, r"confirm you.{0,3}re not a bot|captcha|unusual traffic", _ADVICE_COOKIES),
    ("drm", False, r"\bDRM\b", ""),
    (
        "geo_blocked",
        False,
        r"not (?:made this video )?available (?:in|from) your (?:country|location|region)|geo.?restrict",
        "",
    ),
    ("private", False, r"private video|video is private|is private\b", ""),
    (
        "login_required",
        False,
        r"\bsign in\b|\blog ?in\b|members.only|join this channel|registered users|confirm your age|authentication",
        _ADVICE_COOKIES,
    ),
    ("live", True, r"premieres in|live event will begin|not currently live|is offline", ""),
    (
        "unavailable",
        False,
        r"video (?:is )?(?:unavailable|not available|no longer available)|has been (?:removed|terminated|deleted)"
        r"|does not exist|isn.t available|not available anymore|removed by",
        "",
    ),
    ("no_format", False, r"requested format is not available|no video formats found", ""),
    (
        "needs_javascript_runtime",
        False,
        r"javascript runtime",
        "; install Deno 2.3 or later, for example: pip install deno",
    ),
)
_TRANSIENT_STATUS = {408, 425, 429}


def clean(text: str) -> str:
    """An error's text on one line, without colours, prefixes, advice on options of other programs, and secrets."""
    text = _ANSI.sub("", text)
    text = _PREFIX.sub("", text)
    text = _ADVICE.sub("", text)
    return mask_secrets(" ".join(text.split()))[:500]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, outermost first. Causes are also taken from attributes that libraries use."""
    visited: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        cause = waiting.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in visited:
            continue
        visited.add(id(cause))
        yield cause
        info = getattr(cause, "exc_info", None)
        waiting += [info[1] if isinstance(info, tuple) and len(info) == 3 else None, getattr(cause, "cause", None)]
        waiting += [cause.__cause__, cause.__context__]


def explain(error: Exception, network_error: Exception | None = None) -> DownloadError:
    """The DownloadError for an error of a library. ``network_error``: the last error of the network, if known."""
    chain = [*causes(error), *causes(network_error)]
    for cause in chain:
        if isinstance(cause, DownloadError):
            return cause
    text = clean(str(error)) or type(error).__name__
    kinds = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    # messages of a site; the texts of HTTP errors and unsupported URLs could match by accident
    if not kinds & {"HTTPError", "TransportError", "UnsupportedError"}:
        for code, transient, pattern, advice in _SAYINGS:
            if re.search(pattern, text, re.IGNORECASE):
                return (TransientDownloadError if transient else DownloadError)(code, text + advice)
    for cause in chain:
        if explained := _from_status(cause) or _from_errno(cause):
            return explained
    return _from_kind(kinds, text, type(error).__name__)


def retry_after_seconds(error: BaseException) -> float | None:
    """Seconds to wait by the server's Retry-After header, which gives seconds or a date. None: there is none."""
    for cause in causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None)
        value = headers.get("Retry-After") if headers is not None else None
        if value is None:
            continue
        if value.strip().isdigit():
            return float(value)
        try:
            return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
        except ValueError:
            return None
    return None


def _from_status(cause: BaseException) -> DownloadError | None:
    status = getattr(cause, "status", None)
    if not isinstance(status, int) or not hasattr(cause, "response"):
        return None
    if getattr(cause, "redirect_loop", False):
        return DownloadError("redirect_loop", "the server redirects in a circle")
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    if status >= 500:
        return TransientDownloadError("http_5xx", f"the server answered {phrase}")
    kind = TransientDownloadError if status in _TRANSIENT_STATUS else DownloadError
    return kind(f"http_{status}", f"the server answered {phrase}")


def _from_errno(cause: BaseException) -> DownloadError | None:
    if not isinstance(cause, OSError):
        return None
    if cause.errno in DISK_FULL_ERRNOS:
        return TransientDownloadError("disk_full", f"the download could not be written: {cause.strerror}")
    if isinstance(cause, socket.gaierror):
        code = "connection" if cause.errno == socket.EAI_AGAIN else "host_unknown"
        return TransientDownloadError(code, f"the host's name could not be looked up: {cause.strerror}")
    if isinstance(cause, ConnectionError):
        return TransientDownloadError("connection", f"the connection failed: {cause.strerror or cause}")
    return None


_KINDS: tuple[tuple[str, bool, set[str], str, str], ...] = (
    # code, whether a retry can help, names of classes, words in the text, message
    ("not_media", False, {"UnsupportedError"}, "", "not a video but a web page, and yt-dlp finds no video in it"),
    ("empty", False, set(), "did not get any data blocks", "the server sent zero bytes"),
    ("geo_blocked", False, {"GeoRestrictedError"}, "", "{text}"),
    (
        "unsupported_url",
        False,
        {"InvalidSchema", "InvalidURL", "UnsupportedRequest", "NoSupportingHandlers", "LocationParseError"},
        "",
        "cannot be followed: {text}",
    ),
    ("cookies", False, {"CookieLoadError"}, "", "the cookies cannot be read: {text}"),
    ("certificate", False, {"CertificateVerifyError"}, "", "the server's certificate is not valid: {text}"),
    ("proxy", True, {"ProxyError"}, "", "the proxy failed: {text}"),
    (
        "truncated",
        True,
        {"IncompleteRead", "ContentTooShortError"},
        "more expected",
        "the server ended before the body was complete: {text}",
    ),
    (
        "stalled",
        True,
        {"TimeoutError", "ReadTimeoutError", "ConnectTimeoutError"},
        "timed out",
        "the server stopped sending: {text}",
    ),
    ("connection", True, {"TransportError", "ConnectionError"}, "connection", "the connection failed: {text}"),
    ("section", True, set(), "exited with code", "ffmpeg could not fetch the section: {text}"),
    ("merge_failed", False, {"PostProcessingError"}, "", "picture and sound could not be merged: {text}"),
    ("file_system", True, {"OSError"}, "", "the file could not be written or read: {text}"),
)


def _from_kind(kinds: set[str], text: str, name: str) -> DownloadError:
    for code, transient, names, words, message in _KINDS:
        if kinds & names or (words and words in text.lower()):
            return (TransientDownloadError if transient else DownloadError)(code, message.format(text=text))
    if "YoutubeDLError" in kinds:
        return DownloadError("extractor", text)
    return DownloadError("not_fetched", f"{name}: {text}")


def is_ours(error: BaseException) -> bool:
    """Whether an error was raised in the package ``pipeline`` itself: then it is a bug, and not a failure of the source."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or Path(trace.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parents[1])
