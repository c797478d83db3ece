from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.context import FlowRunContext

from flows.dataset_flow import build_dataset
from flows.logs import logs_in_run
from pipeline.build.build import BuildSummary
from pipeline.build.recipe import load_recipe
from pipeline.dataset.verify import verify
from pipeline.errors import NothingKeptError, RecipeError, SourceListError

pytestmark = pytest.mark.usefixtures("prefect_harness")


def run(**parameters: Any) -> Any:
    return build_dataset(**parameters, return_state=True)


def eventually(read: Any, enough: Any) -> Any:
    """Prefect sends logs and task states from threads, a moment later."""
    deadline = time.monotonic() + 60
    while not enough(found := read()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def test_a_build_leaves_its_story_in_prefect(recipe: Path) -> None:
    state = run(recipe=str(recipe))
    assert state.is_completed(), state.message
    summary = state.result()
    assert isinstance(summary, BuildSummary)
    assert verify(str(recipe.with_name("tiny"))) == []
    assert state.message == f"clips: 3 kept; manifest: {summary.manifest_path}"
    run_id: UUID = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(run_id).name.startswith("tiny ")

        ours = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=ours)}
        assert sorted(artifacts) == ["tiny-counts", "tiny-progress", "tiny-report", "tiny-summary"]
        assert artifacts["tiny-progress"].data == 100.0
        assert artifacts["tiny-summary"].data == summary.to_markdown()
        assert "sources        2  1 kept, 0 rejected, 1 failed\n" in artifacts["tiny-summary"].data
        assert "clips          3  3 kept, 0 rejected, 0 failed\n" in artifacts["tiny-summary"].data
        assert json.loads(artifacts["tiny-counts"].data) == [dict(row) for row in summary.rows]

        of_run = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run_id]))
        tasks = eventually(lambda: client.read_task_runs(task_run_filter=of_run), lambda found: len(found) == 2)
        assert [task.name.split()[0] for task in tasks] == ["batch", "batch"]

        logged = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
        logs = eventually(
            lambda: [log.message for log in client.read_logs(log_filter=logged)],
            lambda found: summary.funnel[-1] in found,
        )
        assert any(message.startswith("tiny: 2 sources, of which 0 are finished") for message in logs)
        assert "waves: kept (clips: 3 kept)" in logs
        assert any(message.startswith("text: failed (not_media: ") for message in logs)


def test_a_second_run_submits_no_finished_batch(recipe: Path) -> None:
    first = run(recipe=str(recipe))
    manifest = Path(first.result().manifest_path).read_bytes()
    again = run(recipe=load_recipe(recipe))
    assert again.result().funnel == first.result().funnel
    assert Path(again.result().manifest_path).read_bytes() == manifest
    with get_client(sync_client=True) as client:
        of_run = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[again.state_details.flow_run_id]))
        assert client.read_task_runs(task_run_filter=of_run) == []


def test_what_the_user_can_put_right_is_the_message_of_the_state(recipe: Path, tmp_path: Path) -> None:
    refused = run(recipe=str(recipe), changes=("execution.workers=0", "nonsense=1"))
    assert refused.is_failed()
    assert "execution.workers: " in refused.message
    assert "nonsense: " in refused.message
    with pytest.raises(RecipeError):
        refused.result()
    missing = run(recipe=str(recipe), changes=(f'sources=["{tmp_path / "no.csv"}"]',))
    assert missing.is_failed()
    with pytest.raises(SourceListError, match=r"no\.csv") as error:
        missing.result()
    assert missing.message == str(error.value)
    nothing = run(recipe=str(recipe), changes=("probe.min_short_side_px=2000",))
    with pytest.raises(NothingKeptError):
        nothing.result()
    with pytest.raises(RecipeError, match="only for a recipe that is given as a path"):
        run(recipe=load_recipe(recipe), changes=("name=other",)).result()


def test_prefect_offers_a_path_and_a_form() -> None:
    schema = build_dataset.parameters.model_dump()
    kinds = schema["properties"]["recipe"]["anyOf"]
    assert kinds == [{"$ref": "#/definitions/BuildRecipe"}, {"type": "string"}]
    form = schema["definitions"]["BuildRecipe"]
    assert form["required"] == ["name", "output", "sources"]
    assert form["additionalProperties"] is False
    assert schema["properties"]["recipe"]["description"].startswith("The path of a recipe")
    undescribed = [
        f"{settings}.{name}"
        for settings, shown in schema["definitions"].items()
        for name, field in shown.get("properties", {}).items()
        if "description" not in field and "$ref" not in field
    ]
    assert undescribed == []


def test_records_of_any_thread_reach_the_run() -> None:
    logger = logging.getLogger("pipeline.somewhere")

    @flow(name="threads")
    def threads() -> UUID:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        with logs_in_run(str(context.flow_run.id)):
            thread = threading.Thread(target=lambda: logger.info("from a thread"))
            thread.start()
            thread.join()
            logger.info("from the flow")
        logger.info("from outside")
        return context.flow_run.id

    run_id = threads()
    assert logging.getLogger("pipeline").handlers == []
    assert logging.getLogger("pipeline").level == logging.NOTSET
    with get_client(sync_client=True) as client:
        logged = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))

        def ours() -> list[str]:
            return sorted(log.message for log in client.read_logs(log_filter=logged) if log.name == logger.name)

        assert eventually(ours, lambda found: len(found) >= 2) == ["from a thread", "from the flow"]
