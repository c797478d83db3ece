"""Where the batches of a build run (threads of this process, or a Dask or Ray cluster), and how many at a time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipeline.build.recipe import ExecutionSettings
from pipeline.errors import UserError

Work = TypeVar("Work")
Result = TypeVar("Result")


def is_remote(execution: ExecutionSettings) -> bool:
    """Whether batches run in other processes than the flow."""
    return execution.task_runner != "threads"


def task_runner(execution: ExecutionSettings) -> TaskRunner[Any]:
    """The task runner that the recipe names. Raises :class:`UserError` if its package is not installed."""
    if execution.task_runner == "dask":
        module = _cluster_module("prefect_dask", execution.task_runner)
        # the workers of a local cluster start processes, which daemonic workers may not
        _cluster_module("dask", execution.task_runner).config.set({"distributed.worker.daemon": False})
        return module.DaskTaskRunner(address=execution.cluster_address)  # type: ignore[no-any-return]
    if execution.task_runner == "ray":
        module = _cluster_module("prefect_ray", execution.task_runner)
        return module.RayTaskRunner(address=execution.cluster_address)  # type: ignore[no-any-return]
    return ThreadPoolTaskRunner(max_workers=execution.batches_in_flight)


def _cluster_module(name: str, task_runner_name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"execution.task_runner: {task_runner_name!r} needs the package {error.name!r}, which is not installed: "
            f"pip install 'hearscape[cluster]', or choose 'threads'"
        ) from error


def run_in_window(
    submit: Callable[[Work], PrefectFuture[Result]],
    work: Iterable[Work],
    num_in_flight: int,
) -> Iterator[Result]:
    """Submits ``work``, at most ``num_in_flight`` items at a time, and yields the results in the order in which they end.

    An item's exception is raised as soon as the item has ended.
    """
    finished: SimpleQueue[PrefectFuture[Result]] = SimpleQueue()
    remaining_work = iter(work)
    num_running = 0
    while True:
        while num_running < num_in_flight:
            try:
                future = submit(next(remaining_work))
            except StopIteration:
                break
            num_running += 1
            future.add_done_callback(finished.put)
        if num_running == 0:
            return
        yield finished.get().result()
        num_running -= 1
