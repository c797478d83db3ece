"""Runs the flow ``build-dataset`` in this process, and shows its progress on the terminal."""

from __future__ import annotations

import json
import logging
import os
import posixpath
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import flows.environment  # noqa: F401 - before Prefect, which reads the environment as it is imported

# isort: split
import httpx
from prefect.exceptions import TerminationSignal
from rich.console import Console

from flows.api import bare_url
from flows.dataset_flow import PROGRESS_OF_CALLER, RECIPE_WITH_SECRETS, build_dataset, plan_line
from flows.logs import show_logs
from flows.progress import Progress, displayed
from flows.runners import task_runner
from flows.server import ServerLostError, all_sent, check_prefect, is_unsent, temporary_server
from pipeline.build.build import Build, BuildSummary
from pipeline.build.recipe import BuildRecipe
from pipeline.errors import HearscapeError, UserError
from pipeline.runtime.interrupts import INTERRUPTED, interrupted_text
from pipeline.runtime.masking import masked_values

TERMINATED = 128 + signal.SIGTERM
"""The exit code of a command that SIGTERM ended, by the convention of shells."""


def check(recipe: BuildRecipe) -> None:
    """Raises :class:`UserError` for everything that can be refused before a server is started and any work is done."""
    task_runner(recipe.execution)
    check_prefect()
    pipeline_logger = logging.getLogger("pipeline")
    level = pipeline_logger.level
    pipeline_logger.setLevel(logging.ERROR)  # the flow repeats these checks and then logs their warnings
    build = Build(recipe)
    try:
        build.check()
    finally:
        build.close()
        pipeline_logger.setLevel(level)


def plan_text(recipe: BuildRecipe) -> str:
    """The resolved recipe as JSON, the agreement rule, and the work to do. Raises what :func:`check` raises."""
    task_runner(recipe.execution)
    check_prefect()
    build = Build(recipe)
    try:
        build.check()
        plan = build.plan(look_only=True)
        return f"{recipe.model_dump_json(indent=2)}\n{plan.agreement}\n{plan_line(recipe, plan)}"
    finally:
        build.close()


def run_now(recipe: BuildRecipe, console: Console) -> BuildSummary:
    """Runs the flow on a temporary server, or on the one that PREFECT_API_URL names, and shows its progress.

    Raises :class:`UserError`, :class:`ServerLostError`, or whatever made the flow fail.
    """
    progress = Progress()
    with ExitStack() as stack:
        stack.enter_context(show_logs(console))
        if os.environ.get("PREFECT_API_URL"):
            stack.enter_context(all_sent())
        else:
            with console.status("Starting a temporary Prefect server"):
                stack.enter_context(temporary_server())
        stack.callback(PROGRESS_OF_CALLER.reset, PROGRESS_OF_CALLER.set(progress))
        stack.callback(RECIPE_WITH_SECRETS.reset, RECIPE_WITH_SECRETS.set(recipe))
        masked_recipe = BuildRecipe.model_validate_json(json.dumps(masked_values(recipe.model_dump(mode="json"))))
        try:
            with displayed(progress, recipe.name, console):
                state = build_dataset(masked_recipe, return_state=True)
        except httpx.HTTPError as error:  # from Prefect's client: errors of the flow itself are in its state
            raise ServerLostError(
                f"the Prefect server at {bare_url(os.environ['PREFECT_API_URL'])} no longer answers as it should ({error}); "
                "what was finished is kept, and the same command goes on"
            ) from error
        summary = state.result()
    assert isinstance(summary, BuildSummary)
    return summary


def summary_text(summary: BuildSummary) -> str:
    """The counts of kept and rejected clips with the reasons, and the paths of manifest, shards and report."""
    folder = posixpath.dirname(summary.manifest_path)
    shards = Counter(posixpath.join(folder, posixpath.dirname(path)) for path in summary.shards)
    folders = [f"shards    {path} ({number})" for path, number in shards.items()]
    report = [f"report    {summary.report_path}"] if summary.report_path else []
    return "\n".join([*summary.funnel, *summary.notes, f"manifest  {summary.manifest_path}", *folders, *report])


def exit_code(work: Callable[[], None], again: str) -> int:
    """Runs ``work`` in the main thread and returns the exit code of the command.

    0 done, 1 failed, 2 refused (the message says what to correct), 130 interrupted by Ctrl-C, 143 by SIGTERM. After the first
    signal the work cleans up; a second one of the same kind ends the process at once. ``again`` is the command line
    that continues interrupted work. Exceptions that are not errors of this project are raised.

    If threads of Prefect would keep the interpreter from ending, this function ends the process and does not return.
    """
    code = _exit_code(work, again)
    if is_unsent():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _exit_code(work: Callable[[], None], again: str) -> int:
    message = interrupted_text(again)
    with (
        _second_signal_ends_at_once(signal.SIGINT, KeyboardInterrupt(), message),
        _second_signal_ends_at_once(signal.SIGTERM, TerminationSignal(signal.SIGTERM), message),
    ):
        try:
            work()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            return 2
        except HearscapeError as error:
            print(f"failed: {error}", file=sys.stderr)  # noqa: T201
            return 1
        except (KeyboardInterrupt, TerminationSignal) as error:
            print(message, file=sys.stderr)  # noqa: T201
            return INTERRUPTED if isinstance(error, KeyboardInterrupt) else TERMINATED
    return 0


@contextmanager
def _second_signal_ends_at_once(number: signal.Signals, interrupt: BaseException, message: str) -> Iterator[None]:
    """The first signal raises ``interrupt``, so that the work cleans up; the second prints ``message`` and ends the process.

    While a flow runs, Prefect handles SIGTERM: it ends the flow, and then sends the signal to this process again.
    """

    def first(*_: object) -> None:
        signal.signal(number, second)
        raise interrupt

    def second(*_: object) -> None:
        Console(stderr=True).show_cursor()
        print(message, file=sys.stderr, flush=True)  # noqa: T201
        os._exit(128 + number)

    previous_handler = signal.signal(number, first)
    try:
        yield
    finally:
        signal.signal(number, previous_handler)
