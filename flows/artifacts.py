"""What Prefect's UI shows of a build besides its logs: how far it is, and at the end what was kept and why not."""

from __future__ import annotations

import itertools
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar, cast
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.progress import Progress, Snapshot, line
from pipeline.build.build import BuildSummary

logger = logging.getLogger(__name__)

UPDATE_EVERY_SECONDS = 5.0
LOG_EVERY_UPDATES = 6
Made = TypeVar("Made")


class Artifacts:
    """The artifacts of a run of the build ``name``. A server that does not answer costs an artifact, not the build."""

    def __init__(self, name: str) -> None:
        self._key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "build"
        self._name = name
        self._progress_id: UUID | None = None
        self._is_lost = False

    @contextmanager
    def updated(self, progress: Progress) -> Iterator[None]:
        """Tells every few seconds how far the build is, while the block runs."""
        over = threading.Event()
        # a thread that has the context of this one: the flow run and the settings that name the server
        ticker = threading.Thread(target=copy_context().run, args=(self._tick, progress, over), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            over.set()
            ticker.join()

    def _tick(self, progress: Progress, over: threading.Event) -> None:
        for number in itertools.count():
            now = progress.snapshot()
            self._show(now)
            if number % LOG_EVERY_UPDATES == LOG_EVERY_UPDATES - 1:
                logger.info("%s", line(now))
            if over.wait(UPDATE_EVERY_SECONDS):
                self._show(progress.snapshot())
                return

    def _show(self, now: Snapshot) -> None:
        percent = round(100 * now.share, 1)
        known = self._progress_id
        if known is None:
            key = f"{self._key}-progress"
            made = self._try(lambda: create_progress_artifact(percent, key=key, description=line(now)))
            self._progress_id = cast(UUID | None, made)  # a coroutine only where an event loop runs
        else:
            self._try(lambda: update_progress_artifact(known, percent, description=line(now)))

    def summarise(self, summary: BuildSummary) -> None:
        """Leaves the summary behind, as a page and as a table."""
        page, table = f"{self._key}-summary", f"{self._key}-counts"
        rows = [dict(row) for row in summary.rows]
        text = f"What became of {self._name}"
        self._try(lambda: create_markdown_artifact(summary.to_markdown(), key=page, description=text))
        self._try(lambda: create_table_artifact(rows, key=table, description=text))

    def report(self, name: str, text: str) -> None:
        """Leaves a word on the dataset's report, and where its page is."""
        self._try(
            lambda: create_markdown_artifact(text, key=f"{self._key}-report", description=f"The report on {name}")
        )

    def _try(self, make: Callable[[], Made]) -> Made | None:
        """Prefect's client asks a silent server again for half a minute: after that this run leaves no further artifacts."""
        if self._is_lost:
            return None
        try:
            return make()
        except httpx.HTTPError as error:
            self._is_lost = isinstance(error, httpx.TransportError)
            logger.warning("an artifact could not be stored in Prefect: %s", error)
            return None
