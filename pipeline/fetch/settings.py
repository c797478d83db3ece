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
"""How the URL of a proxy begins."""


class DownloadSettings(Settings):
    """How sources are fetched."""

    height: PositiveInt | None = 1080
    """Greatest height wanted, in pixels, where a site offers several. None: the best there is."""
    sections: bool = False
    """Fetch only the part between a source's start and end, from sites; the file then begins at the keyframe before the
    start. Plain links are always fetched whole, and so is what a site gives for cookies: ffmpeg, which fetches sections, would
    show them to all users of the machine, on its command line."""
    cookies_file: Path | None = None
    """Cookies in Netscape format. The file is only read. None: none."""
    cookies_browser: str | None = None
    """Take the cookies of this browser: ``firefox``, or with a profile ``chrome:Profile 1``. None: no."""
    proxy: str | None = None
    """URL of a proxy (http, https, socks4, socks5), or ``$NAME`` for the environment variable that holds it: one with a password
    is refused here, since recipes are stored and shown. It decides itself what is reached through it. None: as the
    environment says (``HTTP_PROXY``, ...)."""
    allow_networks: tuple[IPvAnyNetwork, ...] = ()
    """Networks off the public internet that downloads may reach, such as ``192.168.1.0/24`` or ``127.0.0.0/8``. Without any, the only
    such address is one that a source's own link names in figures or as localhost (``http://127.0.0.1:8765/a.mp4``), with
    its port: no name, redirect, page or playlist leads to another."""
    rate_limit_bytes_per_second: PositiveInt | None = None
    """Greatest speed of each download. Sections from sites are not held back. None: no limit."""
    sleep_seconds: NonNegativeFloat = 0.0
    """Least time between two downloads from one host, and between yt-dlp's requests for pages."""
    retries: NonNegativeInt = 3
    """Further tries after an error that may pass: a broken connection, a stall, 5xx, 429."""
    backoff_seconds: NonNegativeFloat = 2.0
    """Wait before the second try; doubled for each further one."""
    backoff_max_seconds: NonNegativeFloat = 60.0
    """Longest wait between two tries that is our own choice."""
    retry_after_max_seconds: NonNegativeFloat = 120.0
    """Longest wait that a host may ask for (Retry-After); if it asks for more, the source fails for now."""
    socket_timeout_seconds: PositiveFloat = 20.0
    """Silence on a connection that counts as a stall."""
    stall_seconds: PositiveFloat = 60.0
    """Time over which the speed must reach ``min_bytes_per_second``."""
    min_bytes_per_second: NonNegativeFloat = 1000.0
    """A download that is slower is stalled."""
    timeout_seconds: PositiveFloat | None = 3600.0
    """Longest time for one source, with all tries, without the wait for a place at its host. None: no limit."""
    max_bytes: PositiveInt | None = 8 << 30
    """Largest file. None: no limit."""
    max_duration_seconds: PositiveFloat | None = 4 * 3600.0
    """Longest video (or section, where one is fetched) as far as the site tells. None: no limit."""
    max_per_host: PositiveInt = 4
    """Downloads from one host at the same time."""
    pause_after: PositiveInt = 3
    """Number of 429 answers in a row after which a host is paused."""
    pause_seconds: NonNegativeFloat = 300.0
    """How long a host is left alone after that, or after it took us for a bot."""
    check_for_changes: bool = False
    """Whether servers are asked, once for each plain file that was fetched by an earlier run, if it is still the same (one HEAD request:
    ETag, else Last-Modified and length); one that is not is fetched and done again. Off, because a run that has nothing to do would
    ask once for every source. Pages of sites are never asked again, and files of this machine always looked at."""

    @field_validator("proxy")
    @classmethod
    def _no_password(cls, proxy: str | None) -> str | None:
        if proxy is not None and "@" in proxy:
            raise ValueError(
                "a user or password does not belong in a recipe: put the URL into an environment variable, and its name here, "
                "such as '$HEARSCAPE_PROXY'"
            )
        if proxy is not None and not proxy.startswith("$") and not PROXY.match(proxy):
            raise ValueError(f"{proxy!r} is no URL of a proxy: write it like http://HOST:PORT or socks5://HOST:PORT")
        return proxy

    def proxy_url(self) -> str | None:
        """The proxy, looked up where it is the name of an environment variable. Raises UserError where that is not set, or is no URL."""
        if self.proxy is None or not self.proxy.startswith("$"):
            return self.proxy
        name = self.proxy[1:]
        if not (found := os.environ.get(name)):
            raise UserError(f"download.proxy: the environment variable {name} is not set")
        if not PROXY.match(found):
            raise UserError(f"download.proxy: what {name} holds does not begin like http://HOST or socks5://HOST")
        return found

    def host_gate(self) -> HostGate:
        """The gate that all fetches of a build share."""
        return HostGate(self.max_per_host, self.pause_after, self.pause_seconds, self.sleep_seconds)

    def wants_section(self, source: Source) -> bool:
        """Whether only a part of the source is asked for from its site."""
        is_plain = PLAIN_LINK.search(urlsplit(source.url).path) is not None
        return self.sections and source.is_section and scheme_of(source.url) in WEB and not is_plain
