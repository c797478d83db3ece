"""Fetches a source into the download store: :func:`fetch`.

Pages and plain links are fetched with yt-dlp (:mod:`pipeline.fetch.web_session`), local files are used in place, and files of fsspec
are copied.
"""

from __future__ import annotations

import atexit
import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from pipeline.errors import ClipError, DownloadError, HearscapeError, UserError
from pipeline.fetch.addresses import named_places
from pipeline.fetch.cookies import check_cookies
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.errors import explain, is_ours
from pipeline.fetch.failures import FetchFailures
from pipeline.fetch.hosts import HostGate
from pipeline.fetch.passthrough import ask_remote, copy_remote, use_local
from pipeline.fetch.retries import with_retries
from pipeline.fetch.settings import WEB, DownloadSettings
from pipeline.fetch.sniff import suffix_of
from pipeline.fetch.transfer import Limits, Pool, Watch, run_watched
from pipeline.fetch.validators import Validators
from pipeline.fetch.web_session import Got, WebSession, YtDlpLog, yt_dlp_module
from pipeline.media import ffmpeg as media
from pipeline.runtime.awake import awake_seconds
from pipeline.runtime.masking import mask_secrets
from pipeline.runtime.stop import Stop
from pipeline.runtime.waiting import counted_lock
from pipeline.schema import Fetched, Source, stable_hash
from pipeline.sources.links import canonical_url, problem_with_url, scheme_of

LOCAL = frozenset({None, "file", "local"})
YOUTUBE = re.compile(r"(?:.+\.)?(?:youtube\.com|youtu\.be|youtube-nocookie\.com)")


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


def _get_remote(source: Source, settings: DownloadSettings, watch: Watch) -> Got:
    path, provenance, validators = copy_remote(source.url, watch.folder, watch, settings.allow_networks)
    return path, False, provenance, validators


def _get_web(source: Source, settings: DownloadSettings, watch: Watch) -> Got:
    with _session_for(source, settings, watch) as session:
        section = (source.start_ms, source.end_ms) if settings.wants_section(source) else None
        return session.get(source.url, section)


@contextlib.contextmanager
def _session_for(source: Source, settings: DownloadSettings, watch: Watch) -> Iterator[WebSession]:
    # the key contains the allowed addresses: a source must not use an open connection that it could not make
    key = f"{settings.model_dump_json()} {sorted(named_places(source.url))}"
    with _sessions.borrowed(key, lambda: WebSession(settings)) as session:
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
        check_cookies(settings, yt_dlp_module(), YtDlpLog())


def _check_youtube(where: str) -> None:
    runtimes = javascript_runtimes()
    if any(supported for _, supported in runtimes.values()):
        if yt_dlp_module().dependencies.yt_dlp_ejs is None:
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
    for name, kind in yt_dlp_module().globals.supported_js_runtimes.value.items():
        if (info := kind().info) is not None:
            runtimes[name] = (str(info.version), bool(info.supported))
    return runtimes


_sessions: Pool[WebSession] = Pool()
atexit.register(_sessions.close)
