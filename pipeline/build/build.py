"""A build: plans its batches, runs one batch, and finishes the dataset. Whoever calls it decides where the batches run."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.agreement.choose_rule import rule_before_build, rule_line
from pipeline.build.changes import ChangeFinder, Changes
from pipeline.build.embedder import Embedder
from pipeline.build.finish import BuildSummary, Finish
from pipeline.build.one_source import run_source
from pipeline.build.recipe import BuildRecipe
from pipeline.build.source_run import Tools
from pipeline.dataset.bugs import BUG, MetBugs, bug_note
from pipeline.dataset.source_records import DoneRecords, Ending, Entry, SourceRecord, source_hash
from pipeline.dataset.withdrawn import read_withdrawn
from pipeline.encoders.pair import check_settings, find_files
from pipeline.errors import DamagedStateError, EncoderError, OutputError, RecipeError, StoppedError
from pipeline.events import Listener
from pipeline.fetch.download import check_requirements
from pipeline.fetch.download_store import DownloadStore
from pipeline.judge.agreement_rule import AgreementRule
from pipeline.judge.rules import Judge
from pipeline.measure.preview_files import PreviewFiles
from pipeline.measure.scenes import check_detector
from pipeline.media.ffmpeg import has_encoder
from pipeline.runtime.disk_errors import disk_error
from pipeline.runtime.folder import Folder
from pipeline.runtime.output_lock import OutputLock
from pipeline.runtime.process_folder import socket_folder
from pipeline.runtime.stop import Stop
from pipeline.runtime.workers import Workers, num_cores
from pipeline.schema import Source, stable_hash
from pipeline.sources.lists import SourceList, read_source_lists

LOG = logging.getLogger(__name__)

MAX_REPAIRS = 5
"""How often finishing a build starts again because state files turn out to be damaged."""
ENCODERS = {"x264": "libx264", "svt_av1": "libsvtav1", "nvenc": "h264_nvenc"}

__all__ = ["BatchResult", "Build", "BuildPlan", "BuildSummary", "SourceBatch"]


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Sources that are processed together, with what the plan found out for all of them. A batch may run later, in another process or
    on another machine."""

    batch_id: str
    sources: tuple[Source, ...]
    rule: AgreementRule
    encoder_id: str | None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Number of sources by state."""

    batch_id: str
    states: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What is still to do."""

    batches: tuple[SourceBatch, ...]
    num_sources: int
    num_finished_sources: int
    num_bad_rows: int
    agreement: str
    """The rule of agreement, in words."""


def _bug_notes(summary: BuildSummary) -> list[str]:
    num_bugs = sum(int(row["count"]) for row in summary.rows if row["what"] == "sources" and row["cause"] == BUG)
    return [bug_note(num_bugs)] if num_bugs else []


def _output_folder(url: str) -> Folder:
    try:
        return Folder(url)
    except OutputError as error:
        raise OutputError(f"output {error}") from error


class Build:
    """The build of one dataset. Every process that runs its batches makes one; only the process that plans and finishes calls
    :meth:`check`."""

    def __init__(self, recipe: BuildRecipe) -> None:
        self.recipe = recipe
        self.output = _output_folder(recipe.output)
        self.state = Folder(f"{recipe.output.rstrip('/')}/state")
        self._listed: SourceList | None = None
        self._tools: Tools | None = None
        self._stop = Stop()
        self._changed = threading.Condition()
        self._num_batches_running = 0
        self._lock = OutputLock(self.output)
        self._scratch: Path | None = None
        self._changes = Changes()

    @functools.cached_property
    def encoder_id(self) -> str | None:
        """Identifies the recipe's encoders by the content of their files, which are downloaded for that. None: the recipe has none."""
        return find_files(self.recipe.encoders).encoder_id if self.recipe.encoders is not None else None

    @functools.cached_property
    def rule(self) -> AgreementRule:
        """The rule of agreement that is applied before a clip is cut. Raises CalibrationError."""
        return rule_before_build(self.recipe.agreement, self.recipe.judge, self.encoder_id)

    @property
    def num_workers(self) -> int:
        return self.recipe.execution.workers or num_cores()

    @property
    def is_stopped(self) -> bool:
        """Whether it was closed, or stopped by an error of one of its batches. No more sources are processed then."""
        return self._stop.is_set()

    def check(self) -> None:
        """Checks the recipe, its files and the disk before any work, and locks the output. Raises UserError."""
        recipe = self.recipe
        encoder = ENCODERS[recipe.cut.codec]
        if not has_encoder(encoder):
            raise RecipeError(
                f"cut.codec = {recipe.cut.codec!r}: the ffmpeg that is used has no working {encoder} here; choose 'x264'"
            )
        check_detector(recipe.scenes)
        if recipe.encoders is not None:
            check_settings(recipe.encoders)
        self._listed = read_source_lists(recipe.sources)
        for problem in self._listed.problems:
            LOG.warning("%s", problem)
        check_requirements(self._listed.sources, recipe.download)
        _ = self.rule
        self.output.check_writable()
        self._check_space()
        self._lock.take(clear_tmp=not recipe.execution.scratch)
        socket_folder()  # removes files of killed processes, also if this process needs no sockets
        PreviewFiles.clear_marks(self.state)
        if self._store_root().is_dir():
            # opening it removes files of killed processes, also if nothing is left to fetch
            DownloadStore(self._store_root()).close()

    def plan(self, *, look_only: bool = False) -> BuildPlan:
        """The batches that are still to do. They hold the sources without a final record under this recipe, the sources whose file was
        replaced, and with ``execution.try_failed_again`` the failed ones. Withdrawn sources are left out.

        The records of replaced sources are removed, unless ``look_only``.
        """
        listed = self._sources()
        done = self._records().index(listed.sources)
        self._changes = self._look_for_changes(done, look_only=look_only)
        for source_id in self._changes.replaced:
            done.pop(source_id, None)
        finished = Ending.WHOLE if self.recipe.execution.try_failed_again else Ending.FAILED
        met_bugs = (
            frozenset() if self.recipe.execution.try_failed_again else self._bugs(self.rule, self.encoder_id).source_ids
        )
        withdrawn = frozenset(read_withdrawn(self.output).sources)
        waiting = [
            source
            for source in sorted(listed.sources, key=lambda source: source.source_id)
            if source.source_id not in withdrawn
            and (
                (entry := done.get(source.source_id)) is None
                or not entry.is_current
                or (entry.ending < finished and source.source_id not in met_bugs)
            )
        ]
        return BuildPlan(
            batches=self._batches(waiting),
            num_sources=len(listed.sources),
            num_finished_sources=len(listed.sources) - len(waiting),
            num_bad_rows=len(listed.problems),
            agreement=rule_line(self.recipe.agreement, self.rule, has_encoders=self.recipe.encoders is not None),
        )

    def _batches(self, waiting: Sequence[Source]) -> tuple[SourceBatch, ...]:
        size = self.recipe.execution.batch_size
        groups = [tuple(waiting[start : start + size]) for start in range(0, len(waiting), size)]
        return tuple(
            SourceBatch(stable_hash(*(source_hash(source) for source in group)), group, self.rule, self.encoder_id)
            for group in groups
        )

    def _look_for_changes(self, done: Mapping[str, Entry], *, look_only: bool) -> Changes:
        finished = {
            source_id: entry.name
            for source_id, entry in done.items()
            if entry.is_current and entry.ending is not Ending.PASSING
        }
        if not self._store_root().is_dir():
            return Changes()
        withdrawn = frozenset(read_withdrawn(self.output).sources)
        listed = [source for source in self._sources().sources if source.source_id not in withdrawn]
        with DownloadStore(self._store_root()) as store:
            finder = ChangeFinder(store, self.recipe.download, self._stop, self.recipe.execution.downloads)
            changes = finder.find(listed, finished, self._records())
            if not look_only:
                finder.forget(listed, changes, self._records())
        for note in changes.notes():
            LOG.warning("%s", note)
        return changes

    def run_batch(self, batch: SourceBatch, listener: Listener) -> BatchResult:
        """Processes every source of the batch and records the outcomes. After :meth:`close` the rest of the sources are left out.

        Raises OutputError if the disk is full or a folder of the build is missing, EncoderError if this machine has other weights,
        and any bug. An error also stops the other batches of this process, within seconds. A broken connection to the state
        (ConnectionError, TimeoutError) does not, since the batch can be run again.
        """
        records = self._records_of(batch.rule, batch.encoder_id)
        bugs = self._bugs(batch.rule, batch.encoder_id)
        with self._batch_running(), self._disk_errors_explained():
            states = self._process_sources(batch, records, bugs, listener)
            if not self._stop.is_set():
                records.close_batch(batch.batch_id, [source.source_id for source in batch.sources])
        return BatchResult(batch.batch_id, dict(states))

    def _process_sources(
        self, batch: SourceBatch, records: DoneRecords, bugs: MetBugs, listener: Listener
    ) -> Counter[str]:
        errors: list[Exception] = []

        def process(source: Source) -> SourceRecord | None:
            if errors:
                return None
            try:
                record = run_source(source, self._tools_for(batch), listener)
                self._stop.check()  # a source that failed now may have failed because of the stop
                bugs.note(source.source_id, record.failure)
                records.put(record)
            except StoppedError:
                return None
            except Exception as error:
                errors.append(error)
                if not isinstance(error, ConnectionError | TimeoutError):
                    self._stop.set()  # otherwise wait() below could take hours
                raise
            return record

        width = self.recipe.execution.downloads + self.num_workers
        pool = ThreadPoolExecutor(min(width, len(batch.sources)), thread_name_prefix=f"batch-{batch.batch_id[:6]}")
        try:
            done = [pool.submit(process, source) for source in batch.sources]
            wait(done)
            if errors:
                raise errors[0]  # later ones may be caused by the stop
            return Counter(record.state for future in done if (record := future.result()) is not None)
        except KeyboardInterrupt:
            self._stop.set()  # otherwise the shutdown below would wait for running sources
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def _disk_errors_explained(self) -> Iterator[None]:
        """Raises an OSError of a full disk or a missing folder as an OutputError that names the folder."""
        try:
            yield
        except OSError as error:
            execution = self.recipe.execution
            named = {"execution.scratch": execution.scratch, "execution.store": execution.store}
            folders = {str(self.output): self.output.local_path} | {name: Path(p) for name, p in named.items() if p}
            if (explained := disk_error(error, folders)) is None:
                raise
            raise explained from error

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
        """Dedup, split, shards, tables and manifest, from the records of all sources.

        If state files turn out to be missing or damaged, their sources are processed again, and finishing starts again.

        Raises NothingKeptError if no clip is kept, CalibrationError if the dataset's own clips are too few for the wanted
        false-accept rate, and OutputError if state files are still damaged after :data:`MAX_REPAIRS` repairs.
        """
        for _ in range(MAX_REPAIRS):
            try:
                with self._disk_errors_explained():
                    summary = self._finish().run(listener)
                return replace(summary, notes=(*_bug_notes(summary), *self._changes.notes(), *summary.notes))
            except DamagedStateError as error:
                damage = error
                self._process_again(damage.source_ids, listener)
        raise OutputError(f"{self.state}: files were written again and are damaged again: {damage}. Check the disk")

    def _finish(self) -> Finish:
        return Finish(
            self.recipe,
            self.output,
            self.state,
            self._records(),
            self._sources(),
            self.encoder_id,
            self.rule,
            self.num_workers,
            self._scratch_root(),
        )

    def _process_again(self, source_ids: Collection[str], listener: Listener) -> None:
        LOG.warning("%d sources are processed again: some of their state files are missing or damaged", len(source_ids))
        for batch in self._batches([source for source in self._sources().sources if source.source_id in source_ids]):
            self.run_batch(batch, listener)
            self._stop.check()

    def close(self) -> None:
        """Stops the work in other threads, within seconds, and closes everything. Finished sources are kept.

        A source that was in progress has no record: the next run processes it.
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
            self._lock.release()

    def _sources(self) -> SourceList:
        if self._listed is None:
            self._listed = read_source_lists(self.recipe.sources)
        return self._listed

    def _records(self) -> DoneRecords:
        return self._records_of(self.rule, self.encoder_id)

    def _records_of(self, rule: AgreementRule, encoder_id: str | None) -> DoneRecords:
        return DoneRecords(self.state, f"done/{self.recipe.per_source_hash(rule, encoder_id)}")

    def _bugs(self, rule: AgreementRule, encoder_id: str | None) -> MetBugs:
        return MetBugs(self.state, self.recipe.per_source_hash(rule, encoder_id))

    def _tools_for(self, batch: SourceBatch) -> Tools:
        tools = self._open_tools()
        encoder_id = tools.embedder.encoder_id if tools.embedder else None
        if encoder_id != batch.encoder_id:
            raise EncoderError(
                f"the encoders are {encoder_id} on {platform.node()} and {batch.encoder_id} where the build was planned: "
                "give every machine the same weight files"
            )
        return replace(tools, judge=Judge(self.recipe.judge, batch.rule))

    def _open_tools(self) -> Tools:
        with self._changed:
            self._stop.check()
            if self._tools is None:
                recipe, execution = self.recipe, self.recipe.execution
                self._scratch = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self._scratch_root()))
                self._tools = Tools(
                    recipe=recipe,
                    judge=Judge(recipe.judge, AgreementRule()),  # replaced by that of the batch in _tools_for
                    state=self.state,
                    store=DownloadStore(self._store_root(), execution.store_budget_bytes),
                    hosts=recipe.download.host_gate(),
                    workers=Workers(self.num_workers, self._stop, execution.process_memory_bytes, self._scratch),
                    embedder=Embedder(recipe.encoders, self._stop, self._scratch)
                    if recipe.encoders is not None
                    else None,
                    previews=PreviewFiles(self.state, execution.previews_budget_bytes, keep=execution.keep_previews),
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
                f"execution.store: name a local folder for downloads, since the output {self.output} is not on this machine"
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
