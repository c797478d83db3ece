"""The flow ``dataset-report``: makes the report on a built dataset, in place of an earlier one."""

from __future__ import annotations

import logging
from typing import Any

import flows.environment  # noqa: F401 - before Prefect, which reads the environment as it is imported

# isort: split
from prefect import State, flow
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.artifacts import Artifacts
from flows.logs import hide_trace, logs_in_run
from pipeline.build.finish import manifest_recipe
from pipeline.build.recipe import BuildRecipe
from pipeline.errors import HearscapeError, UserError
from pipeline.report.make import Report, make_report

logger = logging.getLogger(__name__)

NAME = "dataset-report"
DEFAULT_DATASET = "manifests/demo"


def _run_name() -> str:
    return f"report on {flow_run.parameters.get('dataset', DEFAULT_DATASET)}"


@flow(name=NAME, flow_run_name=_run_name, persist_result=False)
def dataset_report(dataset: str = DEFAULT_DATASET, compare: str | None = None, out: str | None = None) -> State[Any]:
    """Make the report on a built dataset: a page to look and listen, facts as JSON, a dataset card, Croissant.

    Args:
        dataset: The dataset's folder (or URL), on the machine that runs this.
        compare: The folder of an earlier build to compare it with.
        out: The folder to write into, if not the dataset's own.
    """
    return _run(dataset, compare, out)


def _run(dataset: str, compare: str | None, out: str | None) -> State[Any]:
    run = FlowRunContext.get()
    assert run is not None
    assert run.flow_run is not None
    with logs_in_run(str(run.flow_run.id)):
        try:
            report = make_report(dataset, out, compare)
        except UserError as error:
            hide_trace(error)
            return Failed(message=str(error), data=error)
    Artifacts(report.name).report(report.name, report.to_markdown())
    return Completed(message=f"report: {report.page}", data=report)


def report_on_build(recipe: BuildRecipe, artifacts: Artifacts) -> Report | None:
    """Makes the report at the end of a build, even if the build kept nothing. If that fails, logs a warning and returns None."""
    try:
        report = make_report(recipe.output, recipe={**manifest_recipe(recipe), "name": recipe.name})
    except (HearscapeError, OSError) as error:
        logger.warning("the report could not be made: %s", error)
        return None
    artifacts.report(recipe.name, report.to_markdown())
    logger.info("report: %s", report.page)
    return report
