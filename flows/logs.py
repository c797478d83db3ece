"""Sends the project's own log records to the Prefect run that they belong to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.context import TaskRunContext
from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler
from rich.console import Console

from flows.progress import ConsoleHandler
from pipeline.errors import UserError

LOGGERS = ("pipeline", "flows")


class _Stamp(logging.Filter):
    """Names the flow run on records from threads that Prefect did not start, which it would drop otherwise."""

    def __init__(self, flow_run_id: str) -> None:
        super().__init__()
        self._flow_run_id = flow_run_id

    def filter(self, record: logging.LogRecord) -> bool:
        if TaskRunContext.get() is None:
            record.flow_run_id = self._flow_run_id
        return True


@contextmanager
def logs_in_run(flow_run_id: str) -> Iterator[None]:
    """While the block runs, records of ``LOGGERS`` from INFO up are in the run's logs, whichever thread wrote them.

    Prefect's own setting for this, ``logging.extra_loggers``, leaves out every thread of a pool.
    """
    handler = APILogHandler()
    handler.addFilter(_Stamp(flow_run_id))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def hide_trace(error: UserError) -> None:
    """Keeps Prefect from adding the trace of ``error`` to the logs of a run whose last state says it in words."""

    def is_other(record: logging.LogRecord) -> bool:
        return record.exc_info is None or record.exc_info[1] is not error

    logging.getLogger("prefect.flow_runs").addFilter(is_other)


def _is_for_terminal(record: logging.LogRecord) -> bool:
    """Prefect narrates every failed state, traces included; who called the flow raises or tells the same once more."""
    return not record.name.startswith(("prefect.flow_runs", "prefect.task_runs"))


def _nothing(_: logging.LogRecord) -> bool:
    return False


@contextmanager
def show_logs(console: Console) -> Iterator[None]:
    """While the block runs, warnings and errors are written to ``console``, in place of Prefect's own handler."""
    root = logging.getLogger()
    theirs = [handler for handler in root.handlers if isinstance(handler, PrefectConsoleHandler)]
    ours = ConsoleHandler(console)
    ours.addFilter(_is_for_terminal)
    for handler in theirs:
        root.removeHandler(handler)
    root.addHandler(ours)
    # By these two Prefect tells of each log and event that a server did not take, with a trace.
    sending, raising = logging.getLogger("prefect._internal.concurrency"), logging.raiseExceptions
    sending.addFilter(_nothing)
    logging.raiseExceptions = False
    try:
        yield
    finally:
        logging.raiseExceptions = raising
        sending.removeFilter(_nothing)
        root.removeHandler(ours)
        for handler in theirs:
            root.addHandler(handler)
