"""Fetches a source into the download store: :func:`fetch`. This is the only file that imports yt_dlp.

Pages and plain links are fetched with yt-dlp, local files are used in place, files of fsspec are copied.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from pipeline.errors import ClipError, DownloadError, HearscapeError, TransientDownloadError, UserError
from pipeline.fetch.addresses import Reach, named_places, resolved_places
from pipeline.fetch.checking_proxy import CheckingProxy
from pipeline.fetch.cookies import check_cookies, cookie_params, warn_of_skipped_line
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.errors import explain, is_ours
from pipeline.fetch.failures import FetchFailures
from pipeline.fetch.hosts import HostGate
from pipeline.fetch.passthrough import ask_remote, copy_remote, use_local
from pipeline.fetch.provenance import provenance_of
from pipeline.fetch.retries import with_retries
from pipeline.fetch.settings import WEB, DownloadSettings
from pipeline.fetch.sniff import suffix_of
from pipeline.fetch.transfer import Limits, Pool, Watch, check_is_whole, run_watched, watched_reader
from pipeline.fetch.validators import Validators, of_headers
from pipeline.media import ffmpeg as media
from pipeline.runtime.awake import awake_seconds
from pipeline.runtime.masking import mask_secrets
from pipeline.runtime.stop import Stop
from pipeline.runtime.waiting import counted_lock
from pipeline.schema import Fetched, Source, stable_hash
from pipeline.sources.links import canonical_url, problem_with_url, scheme_of

LOG = logging.getLogger(__name__)

LOCAL = frozenset({None, "file", "local"})
PROTOCOLS = re.compile(r"(?:https?|m3u8(?:_native)?|http_dash_segments(?:_generator)?|f4m|ism)(?:\+|$)")
"""yt-dlp's names of the protocols that use http(s) only."""
YOUTUBE = re.compile(r"(?:.+\.)?(?:youtube\.com|youtu\.be|youtube-nocookie\.com)")
PLAIN_HEADERS = frozenset(
    {"user-agent", "accept", "accept-language", "accept-encoding", "sec-fetch-mode", "referer", "origin"}
)
"""Headers of a request that contain no secret."""
SECTION_ARGUMENTS = ["-copyts", "-start_at_zero", "-avoid_negative_ts", "disabled", "-f", "matroska"]
"""Arguments of ffmpeg that keep the source's time stamps, which give the place of the section. Matroska stores them unchanged."""


def fetch_key(source: Source, settings: DownloadSettings) -> str:
    """Key of a fetch: equal for sources and settings that give the same file."""
    section = (source.start_ms, source.end_ms) if settings.wants_section(source) else None
    is_web = scheme_of(source.url) in WEB
    return stable_hash("fetch", 1, canonical_url(source.url), section, settings.height if is_web else None, length=40)


def fetched_before(source: Source, store: DownloadStore, settings: DownloadSettings) -> Fetched | None:
    """The result of an earlier fetch of this source, with an empty path, as the file may have been freed. None: there is none, or the
    file is local."""
    known = None if scheme_of(source.url) in LOCAL else store.known(fetch_key(source, settings))
    if known is None:
        return None
    return Fetched("", known.sha256, known.num_bytes, known.offset_ms, known.provenance)


def fetch(
    source: Source,
    store: DownloadStore,
    settings: DownloadSettings,
    hosts: HostGate,
    stop: Stop | None = None,
    failures: FetchFailures | None = None,
) -> Fetched:
    """Fetches the source's file, or takes it from the store. Blocks.

    The file is pinned: the caller must call ``store.release(fetched.content_sha256)``. A fetch with a lasting failure in ``failures`` is
    not tried again. Local files are always read.

    Raises DownloadError (TransientDownloadError if a later run may succeed), MediaError, or StoppedError once ``stop`` is set.
    """
    stop = stop or Stop()
    scheme = scheme_of(source.url)
    if scheme in LOCAL:
        return use_local(source.url, store)
    if problem := problem_with_url(source.url):
        raise DownloadError("unsupported_url", mask_secrets(problem))
    key = fetch_key(source, settings)
    with counted_lock(store.only_one(key)):
        if stored := store.find(key):
            return stored
        if failures is None:
            return _fetch(source, key, store, settings, hosts, stop)
        failures.check(key, settings)
        try:
            fetched = _fetch(source, key, store, settings, hosts, stop)
        except ClipError as error:
            stop.check()  # a failure during a stop is no property of the source
            failures.keep(key, settings, error)
            raise
        failures.forget(key, settings)
        return fetched


def _fetch(
    source: Source, key: str, store: DownloadStore, settings: DownloadSettings, hosts: HostGate, stop: Stop
) -> Fetched:
    """Fetches with retries, after waiting for a place at the host."""
    with hosts.visit(source.url, stop) as visit:
        started = awake_seconds()
        deadline = started + settings.timeout_seconds if settings.timeout_seconds is not None else None
        return with_retries(
            lambda: _try(source, key, store, settings, deadline, stop),
            visit,
            stop,
            name=mask_secrets(source.url),
            deadline=deadline,
            retries=settings.retries,
            backoff_seconds=settings.backoff_seconds,
            backoff_max_seconds=settings.backoff_max_seconds,
            retry_after_max_seconds=settings.retry_after_max_seconds,
        )


def _try(
    source: Source, key: str, store: DownloadStore, settings: DownloadSettings, deadline: float | None, stop: Stop
) -> Fetched:
    """One try, in a temporary folder."""
    limits = Limits(settings.stall_seconds, settings.min_bytes_per_second, deadline, settings.max_bytes)
    with store.temp_folder() as folder:
        watch = Watch(limits, folder)
        get = _get_web if scheme_of(source.url) in WEB else _get_remote
        try:
            path, is_section, provenance, validators = run_watched(lambda: get(source, settings, watch), watch, stop)
            suffix = suffix_of(path)
            offset_ms = round(media.start_seconds(path) * 1000) if is_section else 0
            return store.add(key, path, suffix, offset_ms=offset_ms, provenance=provenance, validators=validators)
        except HearscapeError:
            raise
        except Exception as error:
            # extractors of sites raise errors without a common base class; errors of this project's code are bugs
            if is_ours(error) and not isinstance(error, OSError):
                raise
            raise explain(error, watch.network_error) from error


def ask(source: Source, settings: DownloadSettings, hosts: HostGate, stop: Stop) -> Validators:
    """The server's current validators of a plain file, without fetching it. Raises DownloadError, or StoppedError once ``stop`` is set."""
    limits = Limits(settings.stall_seconds, 0.0, awake_seconds() + settings.stall_seconds, settings.max_bytes)
    watch = Watch(limits, Path())
    with hosts.visit(source.url, stop):
        try:
            if scheme_of(source.url) not in WEB:
                return run_watched(lambda: ask_remote(source.url, watch, settings.allow_networks), watch, stop)
            with _session_for(source, settings, watch) as session:
                return run_watched(lambda: session.ask(source.url), watch, stop)
        except HearscapeError:
            raise
        except Exception as error:
            if is_ours(error) and not isinstance(error, OSError):
                raise
            raise explain(error, watch.network_error) from error


Got = tuple[Path, bool, dict[str, Any], Validators]
"""Path of the file, whether it is the wanted section only, provenance, validators."""


def _get_remote(source: Source, settings: DownloadSettings, watch: Watch) -> Got:
    path, provenance, validators = copy_remote(source.url, watch.folder, watch, settings.allow_networks)
    return path, False, provenance, validators


def _get_web(source: Source, settings: DownloadSettings, watch: Watch) -> Got:
    with _session_for(source, settings, watch) as session:
        section = (source.start_ms, source.end_ms) if settings.wants_section(source) else None
        return session.get(source.url, section)


@contextlib.contextmanager
def _session_for(source: Source, settings: DownloadSettings, watch: Watch) -> Iterator[_Session]:
    # the key contains the allowed addresses: a source must not use an open connection that it could not make
    key = f"{settings.model_dump_json()} {sorted(named_places(source.url))}"
    with _sessions.borrowed(key, lambda: _Session(settings)) as session:
        session.watch = watch
        yield session


def check_requirements(sources: Iterable[Source], settings: DownloadSettings | None = None) -> None:
    """Raises UserError if these sources need something that is missing; the message says what to install."""
    settings = settings or DownloadSettings()
    if settings.cookies_file is not None and not settings.cookies_file.is_file():
        raise UserError(f"download.cookies_file: there is no file {settings.cookies_file}")
    settings.proxy_url()
    first_of: dict[str, Source] = {}
    is_web = False
    for source in sources:
        scheme = scheme_of(source.url)
        if scheme in LOCAL or problem_with_url(source.url):
            continue
        is_web = is_web or scheme in WEB
        if scheme in WEB:
            if YOUTUBE.fullmatch(urlsplit(source.url).hostname or ""):
                first_of.setdefault("youtube", source)
        else:
            first_of.setdefault(str(scheme), source)
    for need, source in first_of.items():
        where = source.listed_at or f"source {source.source_id}"
        if need == "youtube":
            _check_youtube(where)
            continue
        try:
            fsspec.get_filesystem_class(need)
        except ImportError as error:
            raise UserError(f"{where}: {need}:// needs a package that is not installed: {error}") from error
    if is_web and (settings.cookies_file or settings.cookies_browser):  # yt-dlp is slow to import
        check_cookies(settings, _yt_dlp(), _Log())


def _check_youtube(where: str) -> None:
    runtimes = javascript_runtimes()
    if any(supported for _, supported in runtimes.values()):
        if _yt_dlp().dependencies.yt_dlp_ejs is None:
            raise UserError(f"{where}: videos from YouTube need the package yt-dlp-ejs: pip install 'yt-dlp[default]'")
        return
    problem = ", ".join(f"{name} {version} is too old" for name, (version, _) in runtimes.items()) or "none was found"
    raise UserError(
        f"{where}: videos from YouTube need a JavaScript runtime ({problem}). Install Deno 2.3 or later, for example "
        "with 'pip install deno'; or Node.js 22, Bun 1.2.11 or QuickJS 2023-12-09, or later"
    )


def javascript_runtimes() -> dict[str, tuple[str, bool]]:
    """Version of each JavaScript runtime that is installed, and whether it is new enough."""
    runtimes = {}
    for name, kind in _yt_dlp().globals.supported_js_runtimes.value.items():
        if (info := kind().info) is not None:
            runtimes[name] = (str(info.version), bool(info.supported))
    return runtimes


_at_work: ContextVar[_Session | None] = ContextVar("_at_work", default=None)
"""The session in which this thread downloads."""


@functools.cache
def _yt_dlp() -> Any:
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


class _Log:
    """Sends yt-dlp's messages to the debug log. Its errors are also raised."""

    def debug(self, message: str) -> None:
        if LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("%s", mask_secrets(message))

    info = warning = error = debug


class _Session:
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
        self.ydl = _yt_dlp().YoutubeDL(self._params(), auto_init="no_verbose_header")
        self._urlopen = self.ydl.urlopen
        self.ydl.urlopen = self._open

    def _params(self) -> dict[str, Any]:
        settings = self.settings
        height = settings.height
        wanted = f"bv*[height<={height}]+ba/b[height<={height}]/" if height is not None else ""
        return {
            "logger": _Log(),
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
            "js_runtimes": {name: {} for name in _yt_dlp().globals.supported_js_runtimes.value},
            "match_filter": self._check_video,
            "progress_hooks": [self._check_progress],
            "download_ranges": self._ranges,
            "external_downloader_args": {"ffmpeg_o": SECTION_ARGUMENTS},
        }

    def ask(self, url: str) -> Validators:
        """Validators from the answer to a HEAD request."""
        self.reach = Reach(named_places(url) | resolved_places(self._proxies()), self.settings.allow_networks)
        try:
            self._open(_yt_dlp().networking.common.HEADRequest(url)).close()
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
        _yt_dlp().postprocessor.ffmpeg.FFmpegPostProcessor._ffmpeg_location.set(media.ffmpeg_path())
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
        except _yt_dlp().networking.exceptions.RequestError as error:
            self.watch.network_error = self.reach.refused or error
            if (response := getattr(error, "response", None)) is not None:
                self.watch.opened(response)
            raise


def _shown(link: object) -> str:
    return mask_secrets(str(link))[:200]


_sessions: Pool[_Session] = Pool()
atexit.register(_sessions.close)
