"""A build: what is still to do, batch by batch, and the end. Knows nothing of who runs the batches, or where."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.download import check_requirements
from pipeline.embedder import Embedder
from pipeline.encoders.pair import check_settings
from pipeline.errors import OutputError, RecipeError, StoppedError
from pipeline.finish import BuildSummary, Finish
from pipeline.media import has_encoder
from pipeline.progress import Listener
from pipeline.recipe import BuildRecipe
from pipeline.records import DoneRecords, SourceRecord, source_hash
from pipeline.schema import Source, stable_hash
from pipeline.source_run import Tools, run_source
from pipeline.sources import SourceList, read_source_lists
from pipeline.stop import Stop
from pipeline.storage import Folder
from pipeline.store import Store
from pipeline.workers import Workers, num_cores

LOG = logging.getLogger(__name__)

ENCODERS = {"x264": "libx264", "svt_av1": "libsvtav1", "nvenc": "h264_nvenc"}

__all__ = ["Batch", "BatchResult", "Build", "BuildPlan", "BuildSummary"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Sources that are carried to their end together."""

    batch_id: str
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Number of sources by state."""

    batch_id: str
    states: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What is still to do."""

    batches: tuple[Batch, ...]
    num_sources: int
    num_finished_sources: int
    num_bad_rows: int


class Build:
    """One dataset. Make it in every process that runs its batches; only the one that plans and finishes calls :meth:`check`."""

    def __init__(self, recipe: BuildRecipe) -> None:
        self.recipe = recipe
        self.output = Folder(recipe.output)
        self.state = Folder(f"{recipe.output.rstrip('/')}/state")
        self._listed: SourceList | None = None
        self._tools: Tools | None = None
        self._stop = Stop()
        self._changed = threading.Condition()
        self._num_batches_running = 0
        self._lock_file: IO[bytes] | None = None
        self._scratch: Path | None = None

    @property
    def num_workers(self) -> int:
        return self.recipe.execution.workers or num_cores()

    def check(self) -> None:
        """Refuses, before any work, what cannot go well. Raises UserError; takes the output for this build alone."""
        recipe = self.recipe
        encoder = ENCODERS[recipe.cut.codec]
        if not has_encoder(encoder):
            raise RecipeError(
                f"cut.codec = {recipe.cut.codec!r}: the ffmpeg that is used has no working {encoder} here; choose 'x264'"
            )
        if recipe.encoders is not None:
            check_settings(recipe.encoders)
        elif recipe.judge.min_agreement is not None:
            raise RecipeError("judge.min_agreement needs encoders: without them agreement is not measured")
        self._listed = read_source_lists(recipe.sources)
        for problem in self._listed.problems:
            LOG.warning("%s", problem)
        check_requirements(self._listed.sources, recipe.download)
        self.output.check_writable()
        self._check_space()
        self._lock()

    def plan(self) -> BuildPlan:
        """The batches that are still to do: sources without a final record under this recipe."""
        listed = self._sources()
        done = self._records().index()
        waiting = [
            source
            for source in sorted(listed.sources, key=lambda source: source.source_id)
            if (entry := done.get(source.source_id)) is None or not entry[2] or entry[1] != source_hash(source)
        ]
        size = self.recipe.execution.batch_size
        groups = [tuple(waiting[start : start + size]) for start in range(0, len(waiting), size)]
        batches = tuple(Batch(stable_hash(*(source_hash(source) for source in group)), group) for group in groups)
        return BuildPlan(batches, len(listed.sources), len(listed.sources) - len(waiting), len(listed.problems))

    def run_batch(self, batch: Batch, listener: Listener) -> BatchResult:
        """Carries every source of the batch to its end, or, after :meth:`close`, only those that had ended before it.

        Raises OutputError when the disk is full, and on bugs.
        """
        records = self._records()
        with self._batch_running():
            states = self._carry(batch, records, listener)
            if not self._stop.is_set():
                records.close_batch(batch.batch_id, [source.source_id for source in batch.sources])
        return BatchResult(batch.batch_id, dict(states))

    def _carry(self, batch: Batch, records: DoneRecords, listener: Listener) -> Counter[str]:
        def carry(source: Source) -> SourceRecord | None:
            try:
                record = run_source(source, self._open_tools(), listener)
                self._stop.check()  # what failed now may have failed because all was being ended
            except StoppedError:
                return None
            records.put(record)
            return record

        width = self.recipe.execution.downloads + self.num_workers
        pool = ThreadPoolExecutor(min(width, len(batch.sources)), thread_name_prefix=f"batch-{batch.batch_id[:6]}")
        try:
            return Counter(record.state for record in pool.map(carry, batch.sources) if record is not None)
        except KeyboardInterrupt:
            self._stop.set()  # or we would wait below for sources that nobody wants any more
            raise
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OutputError(
                    f"no space left on the disk of {self.output}: free some and run the same command again"
                ) from error
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def _batch_running(self) -> Iterator[None]:
        with self._changed:
            self._num_batches_running += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_batches_running -= 1
                self._changed.notify_all()

    def finish(self, listener: Listener) -> BuildSummary:
        """Dedup, split, shards, tables and manifest, from the records of all sources. Raises NothingKeptError."""
        encoder_id = None
        if self.recipe.encoders is not None:
            embedder = self._open_tools().embedder
            encoder_id = embedder.encoder_id if embedder else None
        finish = Finish(
            self.recipe, self.output, self.state, self._records(), self._sources(), encoder_id, self.num_workers
        )
        return finish.run(listener)

    def close(self) -> None:
        """Ends what runs in other threads, within seconds, and gives everything back. What was finished is kept.

        Of a source that was at work nothing is recorded: it is the next run's.
        """
        self._stop.set()
        with self._changed:
            self._changed.wait_for(lambda: self._num_batches_running == 0)
            if self._tools is not None:
                self._tools.workers.close()
                if self._tools.embedder is not None:
                    self._tools.embedder.close()
                self._tools.store.close()
                self._tools = None
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)
                self._scratch = None
            if self._lock_file is not None:
                self._lock_file.close()
                self._lock_file = None

    def _sources(self) -> SourceList:
        if self._listed is None:
            self._listed = read_source_lists(self.recipe.sources)
        return self._listed

    def _records(self) -> DoneRecords:
        return DoneRecords(self.state, f"done/{self.recipe.per_source_hash()}")

    def _open_tools(self) -> Tools:
        with self._changed:
            self._stop.check()
            if self._tools is None:
                recipe, execution = self.recipe, self.recipe.execution
                self._scratch = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self._scratch_root()))
                self._tools = Tools(
                    recipe=recipe,
                    state=self.state,
                    store=Store(self._store_root(), execution.store_budget_bytes),
                    hosts=recipe.download.host_gate(),
                    workers=Workers(self.num_workers, self._stop),
                    embedder=Embedder(recipe.encoders, self._stop) if recipe.encoders is not None else None,
                    scratch=self._scratch,
                    stop=self._stop,
                )
            return self._tools

    def _store_root(self) -> Path:
        if self.recipe.execution.store is not None:
            return Path(self.recipe.execution.store)
        local = self.state.local_path
        if local is None:
            raise RecipeError(
                f"execution.store: name a folder of this machine for downloads, since the output {self.output} is elsewhere"
            )
        return local / "downloads"

    def _scratch_root(self) -> Path:
        local = self.state.local_path
        named = self.recipe.execution.scratch
        root = Path(named) if named else local / "tmp" if local else Path(tempfile.gettempdir())
        root.mkdir(parents=True, exist_ok=True)
        return root

    def _check_space(self) -> None:
        self._store_root()
        folders = {Path(name) for name in (self.recipe.execution.store, self.recipe.execution.scratch) if name}
        if self.output.local_path is not None:
            folders.add(self.output.local_path)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if free < self.recipe.execution.min_free_bytes:
                raise OutputError(
                    f"{folder}: {free / 1e9:.1f} GB are free, execution.min_free_bytes asks for "
                    f"{self.recipe.execution.min_free_bytes / 1e9:.1f} GB: free some space, choose another disk, or lower it"
                )

    def _lock(self) -> None:
        """Keeps a second build off the same output, and clears what a killed one left."""
        local = self.state.local_path
        if local is None or self._lock_file is not None:
            return
        local.mkdir(parents=True, exist_ok=True)
        self._lock_file = (local / "lock").open("ab")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock_file.close()
            self._lock_file = None
            raise OutputError(
                f"{self.output}: another build is at work there. Wait for it, or choose another output"
            ) from error
        if not self.recipe.execution.scratch:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(local / "tmp")
