"""A session of yt-dlp, which fetches pages and plain links. This is the only file that imports yt_dlp."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pipeline.errors import DownloadError, TransientDownloadError
from pipeline.fetch.addresses import Reach, named_places, resolved_places
from pipeline.fetch.checking_proxy import CheckingProxy
from pipeline.fetch.cookies import cookie_params, warn_of_skipped_line
from pipeline.fetch.provenance import provenance_of
from pipeline.fetch.settings import WEB, DownloadSettings
from pipeline.fetch.transfer import Watch, check_is_whole, watched_reader
from pipeline.fetch.validators import Validators, of_headers
from pipeline.media import ffmpeg as media
from pipeline.runtime.masking import mask_secrets
from pipeline.sources.links import scheme_of

LOG = logging.getLogger(__name__)

PROTOCOLS = re.compile(r"(?:https?|m3u8(?:_native)?|http_dash_segments(?:_generator)?|f4m|ism)(?:\+|$)")
"""yt-dlp's names of the protocols that use http(s) only."""
PLAIN_HEADERS = frozenset(
    {"user-agent", "accept", "accept-language", "accept-encoding", "sec-fetch-mode", "referer", "origin"}
)
"""Headers of a request that contain no secret."""
SECTION_ARGUMENTS = ["-copyts", "-start_at_zero", "-avoid_negative_ts", "disabled", "-f", "matroska"]
"""Arguments of ffmpeg that keep the source's time stamps, which give the place of the section. Matroska stores them unchanged."""

Got = tuple[Path, bool, dict[str, Any], Validators]
"""Path of the file, whether it is the wanted section only, provenance, validators."""

_at_work: ContextVar[WebSession | None] = ContextVar("_at_work", default=None)
"""The session in which this thread downloads."""


@functools.cache
def yt_dlp_module() -> Any:
    """yt-dlp, imported when it is first needed: that takes half a second."""
    import yt_dlp  # noqa: PLC0415
    import yt_dlp.cookies  # noqa: PLC0415
    import yt_dlp.dependencies  # noqa: PLC0415
    import yt_dlp.globals  # noqa: PLC0415
    import yt_dlp.postprocessor.ffmpeg  # noqa: PLC0415
    import yt_dlp.utils  # noqa: PLC0415

    start = yt_dlp.utils.Popen.__init__

    def start_watched(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        session = _at_work.get()
        if session is not None and isinstance(command, list):
            command, kwargs = session.child_command(command, kwargs)
        # process_group: Ctrl-C does not reach it, else its error would count as one of the site
        start(self, command, *args, **{"process_group": 0, **kwargs})
        if session is not None:
            session.watch.child_started(self)

    yt_dlp.cookies.write_string = warn_of_skipped_line
    # ffmpeg downloads sections itself: its process must be known to stop it, and its requests go through a proxy
    yt_dlp.utils.Popen.__init__ = start_watched
    return yt_dlp


class YtDlpLog:
    """Sends yt-dlp's messages to the debug log. Its errors are also raised."""

    def debug(self, message: str) -> None:
        if LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("%s", mask_secrets(message))

    info = warning = error = debug


class WebSession:
    """A YoutubeDL object for several downloads, one after another: making one takes 60 ms of CPU time."""

    def __init__(self, settings: DownloadSettings) -> None:
        self.settings = settings
        self.watch: Watch
        self.section: tuple[int, int | None] | None = None
        self.content_type: str | None = None
        self.validators: Validators = {}
        self.reach = Reach((), settings.allow_networks)
        self._children_reach = self.reach
        self._children_proxy: CheckingProxy | None = None
        self.ydl = yt_dlp_module().YoutubeDL(self._params(), auto_init="no_verbose_header")
        self._urlopen = self.ydl.urlopen
        self.ydl.urlopen = self._open

    def _params(self) -> dict[str, Any]:
        settings = self.settings
        height = settings.height
        wanted = f"bv*[height<={height}]+ba/b[height<={height}]/" if height is not None else ""
        return {
            "logger": YtDlpLog(),
            "quiet": True,
            "noprogress": True,
            "color": "no_color",
            "cachedir": False,
            "noplaylist": True,
            "playlist_items": "1",
            "format": f"{wanted}bv*+ba/b",
            "format_sort": [f"res:{height}"] if height is not None else [],
            "merge_output_format": "mp4/mkv",
            "outtmpl": {"default": "media.%(ext)s"},
            "overwrites": True,
            "continuedl": False,
            "updatetime": False,
            "retries": 0,
            "extractor_retries": 0,
            "file_access_retries": 0,
            # a long video has hundreds of fragments: one failed fragment must not restart the whole download
            "fragment_retries": settings.retries,
            "retry_sleep_functions": {
                "fragment": lambda n: min(settings.backoff_seconds * 2**n, settings.backoff_max_seconds)
            },
            "skip_unavailable_fragments": False,
            "socket_timeout": settings.socket_timeout_seconds,
            "ratelimit": settings.rate_limit_bytes_per_second,
            "sleep_interval_requests": settings.sleep_seconds,
            "proxy": settings.proxy_url(),
            **cookie_params(settings),
            "ffmpeg_location": media.ffmpeg_path(),
            "js_runtimes": {name: {} for name in yt_dlp_module().globals.supported_js_runtimes.value},
            "match_filter": self._check_video,
            "progress_hooks": [self._check_progress],
            "download_ranges": self._ranges,
            "external_downloader_args": {"ffmpeg_o": SECTION_ARGUMENTS},
        }

    def ask(self, url: str) -> Validators:
        """Validators from the answer to a HEAD request."""
        self.reach = Reach(named_places(url) | resolved_places(self._proxies()), self.settings.allow_networks)
        try:
            self._open(yt_dlp_module().networking.common.HEADRequest(url)).close()
            return self.validators
        finally:
            self.watch.network_error = self.reach.refused or self.watch.network_error
            self._end_download()

    def get(self, url: str, section: tuple[int, int | None] | None) -> Got:
        self.section, self.content_type, self.validators = section, None, {}
        self.reach = reach = Reach(named_places(url) | resolved_places(self._proxies()), self.settings.allow_networks)
        self._children_reach = children_reach = Reach(named_places(url), self.settings.allow_networks)
        if section is not None:
            self._check_proxies()
        token = _at_work.set(self)
        try:
            info = self._extracted(url)
        finally:
            _at_work.reset(token)
            self._end_download()
            self.watch.network_error = children_reach.refused or reach.refused or self.watch.network_error
        if children_reach.refused is not None:
            raise children_reach.refused  # ffmpeg leaves out parts that it cannot fetch, without an error
        downloads = (info or {}).get("requested_downloads")
        if not info or not downloads:
            raise DownloadError("no_video", "the page lists no video")
        is_section = downloads[0].get("section_start") is not None
        validators = self.validators if info.get("direct") else {}
        return Path(downloads[0]["filepath"]), is_section, provenance_of(url, info, self.content_type), validators

    def _extracted(self, url: str) -> Any:
        self.ydl.params["paths"] = {"home": str(self.watch.folder)}
        # read by yt-dlp code without a YoutubeDL object; a context variable, so it is set again in each thread
        yt_dlp_module().postprocessor.ffmpeg.FFmpegPostProcessor._ffmpeg_location.set(media.ffmpeg_path())
        info = self.ydl.extract_info(url)
        while info and info.get("entries") is not None:
            info = next((entry for entry in info["entries"] if entry), None)
        return info

    def _end_download(self) -> None:
        """Closes what belongs to one download. Garbage collection is not enough: a raised error keeps references to it."""
        if self._children_proxy is not None:
            self._children_proxy.close()
            self._children_proxy = None
        self.reach = self._children_reach = Reach((), self.settings.allow_networks)

    def child_command(self, command: list[str], kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        """The command of a child process of yt-dlp, changed so that it ends with this process. ffmpeg is also restricted in its inputs and
        connections."""
        if "ffmpeg" in Path(command[0]).name:
            command = media.guarded(command)
            if any(value.startswith(("http://", "https://")) for value in command):
                kwargs = {**kwargs, "env": {**(kwargs.get("env") or os.environ), **self._children_proxies()}}
        return media.dying_with_us(command), kwargs

    def _children_proxies(self) -> dict[str, str]:
        """Environment variables that make ffmpeg use the user's proxy, which then decides, or else the checking proxy."""
        self._check_proxies()
        user_proxies = self._proxies()
        if user_proxies:
            return {"http_proxy": user_proxies[0], "no_proxy": ""}
        if self._children_proxy is None:
            self._children_proxy = CheckingProxy(self._children_reach, self.settings.socket_timeout_seconds)
        return {"http_proxy": self._children_proxy.url, "no_proxy": ""}

    def _check_proxies(self) -> None:
        if any(proxy.startswith("socks") for proxy in self._proxies()):
            raise DownloadError(
                "proxy", "ffmpeg, which fetches sections, does not support SOCKS proxies: set download.sections = false"
            )

    def _proxies(self) -> list[str]:
        """The proxies that yt-dlp uses."""
        return [url for scheme, url in self.ydl.proxies.items() if url and scheme != "no" and url != "__noproxy__"]

    def _check_video(self, info: dict[str, Any], *, incomplete: bool) -> None:
        """Called by yt-dlp when it has the properties of a video, and again when it has chosen the format."""
        settings = self.settings
        if info.get("live_status") in ("is_live", "is_upcoming", "post_live") or info.get("is_live"):
            raise TransientDownloadError("live", "a live stream that is not over yet")
        if incomplete:
            return
        seconds = info.get("section_end") or info.get("duration")
        if seconds is not None:
            seconds -= info.get("section_start") or 0
        if (
            seconds is not None
            and settings.max_duration_seconds is not None
            and seconds > settings.max_duration_seconds
        ):
            limit = f"download.max_duration_seconds ({settings.max_duration_seconds:g})"
            raise DownloadError("too_long", f"{seconds:.0f} s long, over {limit}")
        if info.get("section_start") is None:
            self.watch.check_size(info.get("filesize"))
        for part in [info, *(info.get("requested_formats") or ())]:
            for link in (part.get("url"), part.get("manifest_url"), part.get("fragment_base_url")):
                if link is not None and scheme_of(str(link)) not in WEB:
                    raise DownloadError("unsupported_url", f"the site refers to {_shown(link)}: not http or https")
        protocol = str(info.get("protocol") or "http")
        if not all(PROTOCOLS.match(part) for part in protocol.split("+")):
            raise DownloadError("unsupported_url", f"the site offers the video over {protocol} only, not over http(s)")
        if info.get("direct"):
            info["ext"] = "unknown_video"  # extensions may be wrong, and yt-dlp refuses some; the content decides

    def _check_progress(self, progress: Mapping[str, Any]) -> None:
        self.watch.check()
        self.watch.check_size(progress.get("total_bytes"))

    def close(self) -> None:
        # there is no file to write the cookies to, and closing would raise if they could not be read
        self.ydl.params["cookiefile"] = None
        self.ydl.close()

    def _ranges(self, info: Mapping[str, Any], ydl: Any) -> list[dict[str, float]]:
        if self.section is None or info.get("direct") or self._would_show_secrets(info):
            return [{}]
        start_ms, end_ms = self.section
        return [{"start_time": start_ms / 1000, "end_time": end_ms / 1000 if end_ms is not None else float("inf")}]

    def _would_show_secrets(self, info: Mapping[str, Any]) -> bool:
        """Whether ffmpeg would get cookies or other secrets on its command line, which all users of the machine can read."""
        for part in info.get("formats") or [info]:
            headers = {name.lower() for name in part.get("http_headers") or ()}
            if headers - PLAIN_HEADERS or self.ydl.cookiejar.get_cookies_for_url(str(part.get("url"))):
                return True
        return False

    def _open(self, request: Any) -> Any:
        """Replaces urlopen of the YoutubeDL object: all reads are counted by the watch."""
        watch = self.watch
        url = request if isinstance(request, str) else request.url
        if scheme_of(url) not in WEB:
            raise DownloadError("unsupported_url", f"refused to follow {_shown(url)}: not http or https")
        with watch.waiting(), self.reach.enforced():
            response = self._with_errors_kept(lambda: self._urlopen(request))
            watch.opened(response)
        check_is_whole(request, response)
        self.content_type, self.validators = response.headers.get("Content-Type"), of_headers(response.headers)
        read = response.read
        response.read = watched_reader(lambda amount: self._with_errors_kept(lambda: read(amount)), watch)
        return response

    def _with_errors_kept(self, request: Callable[[], Any]) -> Any:
        """The result of the request. Its error is kept in the watch: yt-dlp may replace it by one without the cause."""
        try:
            return request()
        except yt_dlp_module().networking.exceptions.RequestError as error:
            self.watch.network_error = self.reach.refused or error
            if (response := getattr(error, "response", None)) is not None:
                self.watch.opened(response)
            raise


def _shown(link: object) -> str:
    return mask_secrets(str(link))[:200]
