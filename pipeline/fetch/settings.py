"""How sources are fetched: the settings of :mod:`pipeline.fetch.download`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import IPvAnyNetwork, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from pipeline.errors import UserError
from pipeline.fetch.hosts import HostGate
from pipeline.schema import Source
from pipeline.settings import Settings
from pipeline.sources.links import scheme_of

WEB = frozenset({"http", "https"})
PLAIN_LINK = re.compile(r"\.(?:mp4|m4v|mov|qt|mkv|webm|avi|mpe?g|m2ts|mts|ts|ogv|wmv|flv|3gp|3g2|mxf)$", re.IGNORECASE)
PROXY = re.compile(r"(?:https?|socks(?:4a?|5h?))://[^/\s]", re.IGNORECASE)
"""Beginning of the URL of a proxy."""


class DownloadSettings(Settings):
    """How sources are fetched."""

    height: PositiveInt | None = 1080
    """Largest height of the picture, in pixels, if a site offers several. None: the largest that it has."""
    sections: bool = False
    """Whether only the part between a source's start and end is fetched from sites. The file then begins at the key frame before the
    start. Plain links are always fetched as a whole, and so are videos that need cookies: ffmpeg, which fetches sections, would have
    the cookies on its command line, which all users of the machine can read."""
    cookies_file: Path | None = None
    """Cookies in Netscape format. The file is only read. None: none."""
    cookies_browser: str | None = None
    """Browser whose cookies are used: ``firefox``, or with a profile ``chrome:Profile 1``. None: none."""
    proxy: str | None = None
    """URL of a proxy (http, https, socks4, socks5), or ``$NAME`` for the environment variable that holds it. A URL with a password is
    refused, since recipes are stored and shown. The proxy decides which addresses are reached through it. None: that of the
    environment (``HTTP_PROXY``, ...)."""
    allow_networks: tuple[IPvAnyNetwork, ...] = ()
    """Networks off the public internet that downloads may connect to, such as ``192.168.1.0/24`` or ``127.0.0.0/8``. Other private
    addresses are allowed only if the source's own link contains the IP address or localhost (``http://127.0.0.1:8765/a.mp4``), with
    this port; names, redirects, pages and playlists never lead to them."""
    rate_limit_bytes_per_second: PositiveInt | None = None
    """Largest speed of each download. Sections from sites are not limited. None: no limit."""
    sleep_seconds: NonNegativeFloat = 0.0
    """Shortest time between two downloads from one host, and between yt-dlp's requests for pages."""
    retries: NonNegativeInt = 3
    """Number of retries after a transient error: a broken connection, a stall, status 5xx or 429."""
    backoff_seconds: NonNegativeFloat = 2.0
    """Pause before the first retry. It doubles each time."""
    backoff_max_seconds: NonNegativeFloat = 60.0
    """Longest pause before a retry, unless the host asks for one."""
    retry_after_max_seconds: NonNegativeFloat = 120.0
    """Longest pause that a host may ask for (Retry-After). If it asks for more, the source fails until the next run."""
    socket_timeout_seconds: PositiveFloat = 20.0
    """Time without data on a connection that counts as a stall."""
    stall_seconds: PositiveFloat = 60.0
    """Time over which the mean speed must reach ``min_bytes_per_second``."""
    min_bytes_per_second: NonNegativeFloat = 1000.0
    """Lowest speed. A slower download is stalled."""
    timeout_seconds: PositiveFloat | None = 3600.0
    """Time limit for one source, with all retries, without the wait for a place at its host. None: no limit."""
    max_bytes: PositiveInt | None = 8 << 30
    """Largest file. None: no limit."""
    max_duration_seconds: PositiveFloat | None = 4 * 3600.0
    """Longest video (or section, if one is fetched), if the site gives the length. None: no limit."""
    max_per_host: PositiveInt = 4
    """Downloads from one host at the same time."""
    pause_after: PositiveInt = 3
    """Number of 429 answers in a row after which a host is paused."""
    pause_seconds: NonNegativeFloat = 300.0
    """How long a host is paused after that, or after it asks for a proof that we are no bot."""
    check_for_changes: bool = False
    """Whether servers are asked if the plain files of earlier runs have changed: one HEAD request for each (ETag, else Last-Modified and
    length). A changed file is fetched and processed again. Off by default, because a run with nothing to do would make a request for
    every source. Pages of sites are never requested again; local files are always checked."""

    @field_validator("proxy")
    @classmethod
    def _no_password(cls, proxy: str | None) -> str | None:
        if proxy is not None and "@" in proxy:
            raise ValueError(
                "a user or password must not be in a recipe: put the URL into an environment variable, and its name here, "
                "such as '$HEARSCAPE_PROXY'"
            )
        if proxy is not None and not proxy.startswith("$") and not PROXY.match(proxy):
            raise ValueError(
                f"{proxy!r} is not the URL of a proxy: write it like http://HOST:PORT or socks5://HOST:PORT"
            )
        return proxy

    def proxy_url(self) -> str | None:
        """The URL of the proxy, from the environment variable if ``proxy`` names one. Raises UserError if that is not set, or no URL."""
        if self.proxy is None or not self.proxy.startswith("$"):
            return self.proxy
        name = self.proxy[1:]
        if not (url := os.environ.get(name)):
            raise UserError(f"download.proxy: the environment variable {name} is not set")
        if not PROXY.match(url):
            raise UserError(f"download.proxy: the value of {name} does not begin like http://HOST or socks5://HOST")
        return url

    def host_gate(self) -> HostGate:
        """The gate that all fetches of a build share."""
        return HostGate(self.max_per_host, self.pause_after, self.pause_seconds, self.sleep_seconds)

    def wants_section(self, source: Source) -> bool:
        """Whether only a section of the source is fetched from its site."""
        is_plain = PLAIN_LINK.search(urlsplit(source.url).path) is not None
        return self.sections and source.is_section and scheme_of(source.url) in WEB and not is_plain
