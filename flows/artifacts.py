"""The artifacts of a build in Prefect's UI: its progress, and at the end a summary and a link to the report."""

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
Artifact = TypeVar("Artifact")


class Artifacts:
    """The artifacts of a run of the build ``name``. If one cannot be stored, a warning is logged and the build continues."""

    def __init__(self, name: str) -> None:
        self._key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "build"
        self._name = name
        self._progress_id: UUID | None = None
        self._is_unreachable = False

    @contextmanager
    def updated(self, progress: Progress) -> Iterator[None]:
        """Updates the progress artifact every ``UPDATE_EVERY_SECONDS`` while the block runs."""
        ended = threading.Event()
        # in a copy of this thread's context, which contains the flow run and the address of the server
        context = copy_context()
        updater = threading.Thread(target=context.run, args=(self._update_until, ended, progress), daemon=True)
        updater.start()
        try:
            yield
        finally:
            ended.set()
            updater.join()

    def _update_until(self, ended: threading.Event, progress: Progress) -> None:
        for number in itertools.count():
            now = progress.snapshot()
            self._show(now)
            if number % LOG_EVERY_UPDATES == LOG_EVERY_UPDATES - 1:
                logger.info("%s", line(now))
            if ended.wait(UPDATE_EVERY_SECONDS):
                self._show(progress.snapshot())
                return

    def _show(self, now: Snapshot) -> None:
        percent = round(100 * now.share, 1)
        progress_id = self._progress_id
        if progress_id is None:
            key = f"{self._key}-progress"
            new_id = self._try(lambda: create_progress_artifact(percent, key=key, description=line(now)))
            self._progress_id = cast(UUID | None, new_id)  # a coroutine only where an event loop runs
        else:
            self._try(lambda: update_progress_artifact(progress_id, percent, description=line(now)))

    def summarise(self, summary: BuildSummary) -> None:
        """Stores the summary as a page and as a table."""
        page_key, table_key = f"{self._key}-summary", f"{self._key}-counts"
        rows = [dict(row) for row in summary.rows]
        description = f"Summary of {self._name}"
        self._try(lambda: create_markdown_artifact(summary.to_markdown(), key=page_key, description=description))
        self._try(lambda: create_table_artifact(rows, key=table_key, description=description))

    def report(self, name: str, text: str) -> None:
        """Stores ``text`` (Markdown) about the report on the dataset ``name``."""
        self._try(
            lambda: create_markdown_artifact(text, key=f"{self._key}-report", description=f"The report on {name}")
        )

    def _try(self, make: Callable[[], Artifact]) -> Artifact | None:
        """Returns what ``make`` returns, or None after an HTTP error.

        Prefect's client retries for half a minute if the server does not answer. After one such failure no more artifacts are
        stored.
        """
        if self._is_unreachable:
            return None
        try:
            return make()
        except httpx.HTTPError as error:
            self._is_unreachable = isinstance(error, httpx.TransportError)
            logger.warning("an artifact could not be stored in Prefect: %s", error)
            return None
