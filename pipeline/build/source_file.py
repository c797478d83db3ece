"""The file of a source: fetched once, and held against what was made of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.build.source_run import ContentChangedError, SourceRun
from pipeline.errors import ClipError, TransientDownloadError
from pipeline.fetch.download import LOCAL, fetch, fetch_key
from pipeline.fetch.failures import FetchFailures
from pipeline.fetch.passthrough import CHANGING, key_of_link, use_local
from pipeline.runtime.hashing import sha256_of
from pipeline.schema import Fetched
from pipeline.sources.links import scheme_of

LOG = logging.getLogger(__name__)

T = TypeVar("T")
SLOW_FETCHING = "raise download.timeout_seconds, lower download.height, or set execution.try_failed_again=true"


def fetched_file(run: SourceRun) -> Fetched:
    """The source's file, on this machine, pinned until the source is done."""
    if run.fetched is None:
        if scheme_of(run.source.url) in LOCAL:
            run.looked_at = key_of_link(run.source.url)
        with run.timed("fetch"):
            settings = run.tools.recipe.download
            limit_seconds = settings.timeout_seconds or math.inf
            with run.timeouts.counted(fetch_key(run.source, settings), limit_seconds, SLOW_FETCHING):
                run.fetched = _fetched_whole(run)
        if run.expected_sha256 not in (None, run.fetched.content_sha256):
            raise ContentChangedError
    return run.fetched


def _fetched_whole(run: SourceRun) -> Fetched:
    """A file of the store that is no longer what was fetched is dropped, and fetched once more."""
    tools = run.tools
    failures = FetchFailures(tools.state, try_again=tools.recipe.execution.try_failed_again)
    for _ in range(2):
        fetched = fetch(run.source, tools.store, tools.recipe.download, tools.hosts, tools.stop, failures)
        path = Path(fetched.path)
        is_ours = path.is_relative_to(tools.store.root)
        if fetched.is_new or not is_ours or _has_sum(path, fetched.content_sha256):
            return fetched
        LOG.warning("%s is not what was fetched: fetched again", path)
        tools.store.release(fetched.content_sha256)
        path.unlink(missing_ok=True)
    raise TransientDownloadError("damaged", f"{path} is damaged as soon as it is written: check the disk")


def _has_sum(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except FileNotFoundError:  # another source found the damage, too
        return False


def _check_file(run: SourceRun) -> None:
    """What was made of a file of this machine holds only if the file is still the one that was hashed.

    Raises ContentChangedError where it is another one, TransientDownloadError where it is gone.
    """
    tools, fetched, url = run.tools, run.fetched, run.source.url
    if fetched is None or scheme_of(url) not in LOCAL:
        return
    known = tools.store.known(key_of_link(url))
    if known is not None and known.sha256 == fetched.content_sha256:
        return
    tools.store.release(fetched.content_sha256)
    run.fetched = None
    try:
        run.fetched = use_local(url, tools.store)  # it may only have been touched
    except ClipError as error:
        run.stage = "fetch"
        raise TransientDownloadError(CHANGING, f"the file changed while it was worked on: {error}") from error
    if run.fetched.content_sha256 != fetched.content_sha256:
        raise ContentChangedError


def of_one_file(run: SourceRun, work: Callable[[], T]) -> T:
    """What ``work`` gives or raises, unless the file was replaced or removed meanwhile: then that is raised."""
    try:
        done = work()
    except (ClipError, OSError):
        run.tools.stop.check()
        _check_file(run)
        raise
    _check_file(run)
    return done
