"""Cookies for downloads: tried before any work, given to yt-dlp as it wants them, and never shown."""

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
        # a text, since yt-dlp writes cookies back to where it read them
        "cookiefile": io.StringIO(path.read_text(errors="replace")) if path is not None else None,
        "cookiesfrombrowser": (name, profile or None, None, None) if name else None,
    }


def check_cookies(settings: DownloadSettings, yt_dlp: Any, logger: object) -> None:
    """Reads the cookies once, as what is wrong with them would be wrong for every source. Raises UserError."""
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
    """What yt-dlp says of the cookies, which it was given as a text without a name; without the line that it cannot read."""
    said = re.sub(r"(invalid Netscape format cookies file <.*?>): .*", r"\1", str(cause), flags=re.DOTALL)
    said = re.sub(r"<_io.StringIO object at 0x[0-9a-f]+>", str(settings.cookies_file), said)
    if said.startswith("unsupported browser"):
        said += f"; choose one of {', '.join(sorted(browsers))}"
    return said


def tell_of_skipped_line(said: str, *_args: object, **_kwargs: object) -> None:
    """In place of yt-dlp's word on the terminal, which has the whole line: a cookie is a secret, also a misspelt one."""
    found = re.search(r"due to (invalid length \d+|invalid expires)", said)
    warn_once(found[1] if found else "not in Netscape's format")


@functools.cache
def warn_once(problem: str) -> None:
    """The file is read for every connection."""
    LOG.warning("download.cookies_file: lines are left out that cannot be read: %s", problem)
