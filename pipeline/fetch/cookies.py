"""Cookies for downloads: checked before any work, passed to yt-dlp, and never shown."""

from __future__ import annotations

import functools
import io
import logging
import re
from typing import Any

from pipeline.errors import UserError
from pipeline.fetch.settings import DownloadSettings

LOG = logging.getLogger(__name__)


def cookie_params(settings: DownloadSettings) -> dict[str, Any]:
    """yt-dlp's parameters for the cookies of the settings."""
    path = settings.cookies_file
    name, _, profile = (settings.cookies_browser or "").partition(":")
    return {
        # a text instead of the path, because yt-dlp writes changed cookies back to the file
        "cookiefile": io.StringIO(path.read_text(errors="replace")) if path is not None else None,
        "cookiesfrombrowser": (name, profile or None, None, None) if name else None,
    }


def check_cookies(settings: DownloadSettings, yt_dlp: Any, logger: object) -> None:
    """Reads the cookies once before the build, since an error in them would fail every source. Raises UserError."""
    params = cookie_params(settings)
    file, browser = params["cookiefile"], params["cookiesfrombrowser"]
    for field, loaded in (("cookies_file", (file, None)), ("cookies_browser", (None, browser))):
        if loaded == (None, None):
            continue
        quiet = {"logger": logger, "quiet": True, "color": "no_color"}
        with yt_dlp.YoutubeDL(quiet, auto_init="no_verbose_header") as ydl:
            try:
                yt_dlp.cookies.load_cookies(*loaded, ydl)
            except yt_dlp.cookies.CookieLoadError as error:
                problem = _problem(error.__context__, settings, yt_dlp.cookies.SUPPORTED_BROWSERS)
                raise UserError(f"download.{field}: {problem}") from error


def _problem(cause: BaseException | None, settings: DownloadSettings, browsers: set[str]) -> str:
    """yt-dlp's message, with the name of the file, which it does not know, and without the bad line, which may hold a secret."""
    message = re.sub(r"(invalid Netscape format cookies file <.*?>): .*", r"\1", str(cause), flags=re.DOTALL)
    message = re.sub(r"<_io.StringIO object at 0x[0-9a-f]+>", str(settings.cookies_file), message)
    if message.startswith("unsupported browser"):
        message += f"; choose one of {', '.join(sorted(browsers))}"
    return message


def warn_of_skipped_line(message: str, *_args: object, **_kwargs: object) -> None:
    """Replaces a function of yt-dlp that prints the whole line, which may hold a secret."""
    match = re.search(r"due to (invalid length \d+|invalid expires)", message)
    warn_once(match[1] if match else "not in Netscape's format")


@functools.cache
def warn_once(problem: str) -> None:
    """Logs a problem once: the file is read for every connection."""
    LOG.warning("download.cookies_file: lines that cannot be read are left out: %s", problem)
