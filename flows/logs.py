"""Sends the log records of this project to the Prefect run that they belong to, or to the terminal."""

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


class _RunIdFilter(logging.Filter):
    """Adds the flow run's id to records of threads that Prefect did not start; Prefect drops records without an id."""

    def __init__(self, flow_run_id: str) -> None:
        super().__init__()
        self._flow_run_id = flow_run_id

    def filter(self, record: logging.LogRecord) -> bool:
        if TaskRunContext.get() is None:
            record.flow_run_id = self._flow_run_id
        return True


@contextmanager
def logs_in_run(flow_run_id: str) -> Iterator[None]:
    """While the block runs, records of ``LOGGERS`` from every thread, of level INFO and above, go to the run's logs.

    Prefect's own setting for this, ``logging.extra_loggers``, leaves out the threads of pools.
    """
    handler = APILogHandler()
    handler.addFilter(_RunIdFilter(flow_run_id))
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
    """Keeps Prefect from logging the traceback of ``error``: the message of the run's final state is enough."""

    def is_other(record: logging.LogRecord) -> bool:
        return record.exc_info is None or record.exc_info[1] is not error

    logging.getLogger("prefect.flow_runs").addFilter(is_other)


def _is_for_terminal(record: logging.LogRecord) -> bool:
    """False for Prefect's own records of failed states and their tracebacks, which the flow's caller raises or prints."""
    return not record.name.startswith(("prefect.flow_runs", "prefect.task_runs"))


def _reject_all(_: logging.LogRecord) -> bool:
    return False


@contextmanager
def show_logs(console: Console) -> Iterator[None]:
    """While the block runs, warnings and errors are written to ``console``, and not by Prefect's own console handlers."""
    root = logging.getLogger()
    prefect_handlers = [handler for handler in root.handlers if isinstance(handler, PrefectConsoleHandler)]
    console_handler = ConsoleHandler(console)
    console_handler.addFilter(_is_for_terminal)
    for handler in prefect_handlers:
        root.removeHandler(handler)
    root.addHandler(console_handler)
    # Otherwise Prefect prints a traceback for each log record and event that a server did not accept, in these two ways.
    concurrency_logger, raise_exceptions = logging.getLogger("prefect._internal.concurrency"), logging.raiseExceptions
    concurrency_logger.addFilter(_reject_all)
    logging.raiseExceptions = False
    try:
        yield
    finally:
        logging.raiseExceptions = raise_exceptions
        concurrency_logger.removeFilter(_reject_all)
        root.removeHandler(console_handler)
        for handler in prefect_handlers:
            root.addHandler(handler)
