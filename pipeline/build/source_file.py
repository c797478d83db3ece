"""The file of a source: fetched at most once per run, and checked for being replaced while it is processed."""

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
    """The source's file on this machine, pinned in the store until the source is done.

    Raises ContentChangedError if it is not the file that was processed before, and what :func:`fetch` raises.
    """
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
    """Fetches the file. A file in the store whose SHA-256 is wrong is removed and fetched once more."""
    tools = run.tools
    failures = FetchFailures(tools.state, try_again=tools.recipe.execution.try_failed_again)
    for _ in range(2):
        fetched = fetch(run.source, tools.store, tools.recipe.download, tools.hosts, tools.stop, failures)
        path = Path(fetched.path)
        is_ours = path.is_relative_to(tools.store.root)
        if fetched.is_new or not is_ours or _has_sum(path, fetched.content_sha256):
            return fetched
        LOG.warning("%s was damaged in the store: it is fetched again", path)
        tools.store.release(fetched.content_sha256)
        path.unlink(missing_ok=True)
    raise TransientDownloadError("damaged", f"{path} is damaged as soon as it is written: check the disk")


def _has_sum(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except FileNotFoundError:  # another source found the damage, too
        return False


def _check_file(run: SourceRun) -> None:
    """Checks that a local file is still the one that was hashed: results hold for that one only.

    Raises ContentChangedError if it was replaced, and TransientDownloadError if it was removed or cannot be read.
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
        run.fetched = use_local(url, tools.store)  # its content may be the same, with another time
    except ClipError as error:
        run.stage = "fetch"
        raise TransientDownloadError(CHANGING, f"the file changed while it was processed: {error}") from error
    if run.fetched.content_sha256 != fetched.content_sha256:
        raise ContentChangedError


def of_one_file(run: SourceRun, work: Callable[[], T]) -> T:
    """Result or error of ``work``. If the file was replaced or removed meanwhile, raises what :func:`_check_file` raises instead."""
    try:
        result = work()
    except (ClipError, OSError):
        run.tools.stop.check()
        _check_file(run)
        raise
    _check_file(run)
    return result
