"""The state of one source while it is processed, and the tools that all sources of a process share."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.build.embedder import Embedder
from pipeline.build.recipe import BuildRecipe
from pipeline.build.timeouts import Timeouts
from pipeline.dataset.source_records import WAITED
from pipeline.errors import ClipError
from pipeline.events import Listener, Stage, StageEvent
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.hosts import HostGate
from pipeline.judge.rules import Judge
from pipeline.measure.preview_files import PreviewFiles
from pipeline.runtime.folder import Folder
from pipeline.runtime.stop import Stop
from pipeline.runtime.waiting import counting
from pipeline.runtime.workers import Workers
from pipeline.schema import Fetched, Source

LEAST_WAIT_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Tools:
    """Tools that all sources of one process share."""

    recipe: BuildRecipe
    judge: Judge
    state: Folder
    store: DownloadStore
    hosts: HostGate
    workers: Workers
    embedder: Embedder | None
    previews: PreviewFiles
    scratch: Path
    stop: Stop


@dataclass(slots=True)
class SourceRun:
    """The state of one source while it is processed."""

    tools: Tools
    source: Source
    listener: Listener
    fetched: Fetched | None = None
    expected_sha256: str | None = None
    """SHA-256 of the file that the results are of, from an earlier run or this one. None: not known yet."""
    looked_at: str = ""
    """Identifies the local file by size, time and inode, before it was read. Empty: none."""
    timings: dict[str, float] = field(default_factory=dict)
    stage: str = "fetch"

    @property
    def timeouts(self) -> Timeouts:
        return Timeouts(
            self.tools.state,
            try_again=self.tools.recipe.execution.try_failed_again,
            memory_bytes=self.tools.recipe.execution.process_memory_bytes,
            source_id=self.source.source_id,
        )

    @contextlib.contextmanager
    def timed(self, stage: Stage, media_seconds: float = 0.0, *, reused: bool = False) -> Iterator[None]:
        """Times the work of a stage, also if it fails, and sends a StageEvent if it does not. Waiting for other sources is counted
        separately."""
        self.stage = stage
        started = time.monotonic()
        worked_seconds = 0.0
        with counting() as waited:
            try:
                yield
            finally:
                worked_seconds = max(time.monotonic() - started - waited.seconds, 0.0)
                if not reused:
                    self._add(stage, worked_seconds)
                    self._add(WAITED, waited.seconds)
        self.listener(StageEvent(stage, self.source.source_id, worked_seconds, media_seconds, reused))

    def _add(self, name: str, seconds: float) -> None:
        if name != WAITED or seconds >= LEAST_WAIT_SECONDS:
            self.timings[name] = round(self.timings.get(name, 0.0) + seconds, 3)


class ContentChangedError(Exception):
    """The file was replaced or fetched again with another content: results of the old content do not hold for it."""


@contextlib.contextmanager
def scratch_folder(run: SourceRun) -> Iterator[Path]:
    """A folder for temporary files. If it was removed meanwhile, a ClipError becomes a FileNotFoundError: the missing folder is its
    cause, not the source."""
    folder = Path(tempfile.mkdtemp(dir=run.tools.scratch))
    try:
        yield folder
    except ClipError as error:
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
