"""The flow ``build-dataset``: makes shards from links, batch by batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import flows.environment  # noqa: F401 - before Prefect, which reads the environment as it is imported

# isort: split
from prefect import State, flow
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.artifacts import Artifacts
from flows.batches import LOCAL_BUILD, LocalBuild, run_batch
from flows.dataset_report import report_on_build
from flows.logs import hide_trace, logs_in_run
from flows.progress import Progress
from flows.runners import is_remote, run_in_window, task_runner
from pipeline.build.build import Build, BuildPlan, BuildSummary
from pipeline.build.recipe import BuildRecipe, load_recipe
from pipeline.errors import NothingKeptError, RecipeError, UserError
from pipeline.runtime.masking import masked_values

logger = logging.getLogger(__name__)

NAME = "build-dataset"
DEFAULT_RECIPE = "manifests/recipes/demo.toml"
MAX_LOGGED_SOURCES = 5000
"""Above this number of sources the run logs its progress only, not a line for each source: Prefect stores each line as a row."""
PROGRESS_OF_CALLER: ContextVar[Progress | None] = ContextVar("progress_of_caller", default=None)
"""The progress that the caller of the flow, in this process, displays. None: the flow makes its own."""
RECIPE_WITH_SECRETS: ContextVar[BuildRecipe | None] = ContextVar("recipe_with_secrets", default=None)
"""The recipe with its secrets. The caller masks them in the flow's parameter, since Prefect stores parameters."""


def _run_name() -> str:
    recipe = flow_run.parameters.get("recipe", DEFAULT_RECIPE)
    name = Path(recipe).stem if isinstance(recipe, str) else recipe["name"] if isinstance(recipe, dict) else recipe.name
    return f"{name} {datetime.now():%Y-%m-%d %H:%M:%S}"


@flow(name=NAME, flow_run_name=_run_name, persist_result=False)
def build_dataset(recipe: BuildRecipe | str = DEFAULT_RECIPE, changes: tuple[str, ...] = ()) -> State[Any]:
    """Build a dataset: download, measure, judge, cut and pack, with a manifest and a report.

    The same run again continues where the last one ended.

    Args:
        recipe: The path of a recipe (TOML) on the machine that builds, or the recipe itself.
        changes: Changes to a recipe that was given as a path, such as "download.height=720".
    """
    # Only a call: a cluster receives this function pickled by value, with every global variable that its body names.
    return _run(recipe, changes)


def _run(recipe: BuildRecipe | str, changes: Sequence[str]) -> State[Any]:
    run = FlowRunContext.get()
    assert run is not None
    assert run.flow_run is not None
    progress = PROGRESS_OF_CALLER.get() or Progress()
    with logs_in_run(str(run.flow_run.id)):
        try:
            summary = _build(_resolved(recipe, changes), progress)
        except UserError as error:
            hide_trace(error)
            return Failed(message=str(error), data=error)
    clip_rows = [row for row in summary.rows if row["what"] == "clips" and not row["cause"] and row["count"]]
    clip_counts = ", ".join(f"{row['count']} {row['state']}" for row in clip_rows)
    return Completed(message=f"clips: {clip_counts}; manifest: {summary.manifest_path}", data=summary)


def _resolved(recipe: BuildRecipe | str, changes: Sequence[str]) -> BuildRecipe:
    """The recipe of a run. Raises RecipeError for changes to a recipe that is not a path, and for secrets that Prefect has stored."""
    if (with_secrets := RECIPE_WITH_SECRETS.get()) is not None:
        return with_secrets
    if isinstance(recipe, str):
        return load_recipe(recipe, changes)
    if changes:
        raise RecipeError("changes: only for a recipe that is given as a path; put them into the recipe itself")
    values = recipe.model_dump(mode="json")
    if masked_values(values) != values:
        raise RecipeError(
            "the recipe holds a password or a signature, and Prefect has stored it with this run: delete the run, "
            "write the recipe to a file, and name its path instead"
        )
    return recipe


def _build(recipe: BuildRecipe, progress: Progress) -> BuildSummary:
    task_runner(recipe.execution)  # raises UserError if a package is missing
    build = Build(recipe)
    try:
        build.check()
        plan = build.plan()
        progress.begin(plan.num_sources, plan.num_finished_sources, embeds=recipe.encoders is not None)
        logger.info("%s", plan_line(recipe, plan))
        logger.info("%s", plan.agreement)
        artifacts = Artifacts(recipe.name)
        with artifacts.updated(progress):
            if plan.batches:
                _run_batches(recipe, build, plan, progress)
            try:
                summary = build.finish(progress)
            except NothingKeptError:
                report_on_build(recipe, artifacts)  # shows why nothing was kept
                raise
        artifacts.summarise(summary)
        report = report_on_build(recipe, artifacts)
        summary = replace(summary, report_path=report.page if report else None)
        for text in summary.funnel:
            logger.info("%s", text)
        return summary
    finally:
        build.close()


def _run_batches(recipe: BuildRecipe, build: Build, plan: BuildPlan, progress: Progress) -> None:
    remote = is_remote(recipe.execution)
    log_sources = plan.num_sources <= MAX_LOGGED_SOURCES
    token = LOCAL_BUILD.set(None if remote else LocalBuild(build, progress))
    try:
        with task_runner(recipe.execution) as runner:
            try:
                for outcome in run_in_window(
                    lambda batch: runner.submit(
                        run_batch, {"recipe": recipe, "batch": batch, "log_sources": log_sources}
                    ),
                    plan.batches,
                    recipe.execution.batches_in_flight,
                ):
                    for event in outcome.events:
                        progress(event)
            except BaseException as error:
                hint = " (Ctrl-C again: do not wait for it)" if isinstance(error, KeyboardInterrupt) else ""
                logger.warning("%s: ending the sources at work%s; finished ones are kept", type(error).__name__, hint)
                build.close()  # otherwise the runner would wait for the running batches
                raise
    finally:
        LOCAL_BUILD.reset(token)


def plan_line(recipe: BuildRecipe, plan: BuildPlan) -> str:
    """The work to do, in one line."""
    return (
        f"{recipe.name}: {plan.num_sources} sources, of which {plan.num_finished_sources} are finished "
        f"(and {plan.num_bad_rows} rows that cannot be read); "
        f"{len(plan.batches)} batches to do, {recipe.execution.batches_in_flight} at a time; output in {recipe.output}"
    )
