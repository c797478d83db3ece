"""The Prefect task that builds one batch of sources, in this process or on a cluster."""

from __future__ import annotations

import atexit
import functools
import logging
import multiprocessing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.logs import logs_in_run
from flows.progress import Progress
from pipeline.build.build import BatchResult, Build, SourceBatch
from pipeline.build.recipe import BuildRecipe
from pipeline.errors import TransientError, UserError
from pipeline.events import Event, Listener, SourceEvent

logger = logging.getLogger(__name__)

RETRY_DELAYS_SECONDS = [10.0, 60.0]


@dataclass(frozen=True, slots=True)
class LocalBuild:
    """The build of this process and its progress, which its batches share."""

    build: Build
    progress: Progress


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """The result of a batch."""

    result: BatchResult
    events: tuple[Event, ...] = ()
    """The events of a batch that ran in another process; the flow passes them to its progress."""


LOCAL_BUILD: ContextVar[LocalBuild | None] = ContextVar("local_build", default=None)
"""Set by a flow whose batches run in its own process; None where they run elsewhere. Prefect copies context variables to the threads
of tasks."""


def is_transient(_task: Any, _task_run: Any, state: Any) -> bool:
    """Whether a failed batch may succeed if it is repeated. Prefect calls it with the task, its run and the failed state."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, TransientError | ConnectionError | TimeoutError)


@functools.lru_cache(maxsize=1)
def _build_of_worker(recipe_json: str) -> Build:
    """The build of a worker process of a cluster, made once for all batches of the process.

    Raises UserError in a daemonic worker, which may not start processes.
    """
    if multiprocessing.current_process().daemon:
        raise UserError(
            "this worker of the cluster is a daemonic process and may not start the processes that decode: "
            "start Dask's workers with DASK_DISTRIBUTED__WORKER__DAEMON=false"
        )
    build = Build(BuildRecipe.model_validate_json(recipe_json))
    atexit.register(build.close)
    return build


def _with_log_lines(listener: Listener) -> Listener:
    """A listener that calls ``listener``, and logs a line for every source that has ended."""

    def listen(event: Event) -> None:
        listener(event)
        if isinstance(event, SourceEvent):
            clips = ", ".join(f"{number} {outcome}" for outcome, number in sorted(event.clips.items()))
            details = "; ".join(part for part in (event.detail, clips and f"clips: {clips}") if part)
            logger.info("%s: %s%s", event.source_id, event.state.value, f" ({details})" if details else "")

    return listen


def _run_batch(recipe: BuildRecipe, batch: SourceBatch, log_sources: bool) -> BatchOutcome:
    local = LOCAL_BUILD.get()
    events: list[Event] = []
    listener: Listener = local.progress if local is not None else events.append
    if log_sources:
        listener = _with_log_lines(listener)
    if local is not None:
        local.progress.queue(source.source_id for source in batch.sources)
        return BatchOutcome(local.build.run_batch(batch, listener))
    with logs_in_run(str(flow_run.id)):
        build = _build_of_worker(recipe.model_dump_json())
        try:
            result = build.run_batch(batch, listener)
        except Exception:
            if build.is_stopped:  # a stopped build refuses batches, and this process may get batches of a later run
                _build_of_worker.cache_clear()
            raise
    return BatchOutcome(result, tuple(events))


@task(
    name="batch",
    task_run_name="batch {batch.batch_id}",
    retries=len(RETRY_DELAYS_SECONDS),
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=is_transient,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_batch(recipe: BuildRecipe, batch: SourceBatch, log_sources: bool) -> BatchOutcome:
    """Processes the sources of the batch until each is kept, rejected or failed. ``log_sources``: logs a line for each."""
    # Only a call: a cluster receives this function pickled by value, with every global variable that its body names.
    return _run_batch(recipe, batch, log_sources)
