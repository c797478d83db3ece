"""The report in Prefect: left by a build, made again by its own flow, and never the end of a build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from flows.artifacts import Artifacts
from flows.dataset_flow import build_dataset
from flows.dataset_report import dataset_report, report_on_build
from pipeline.build.recipe import load_recipe
from pipeline.errors import NothingKeptError, ReportError
from pipeline.report.make import Report

pytestmark = pytest.mark.usefixtures("prefect_harness")


def artifacts_of(run_id: UUID) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        ours = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        return {str(artifact.key): artifact.data for artifact in client.read_artifacts(artifact_filter=ours)}


def test_a_build_leaves_a_report_and_the_flow_makes_it_again(recipe: Path) -> None:
    built = build_dataset(recipe=str(recipe), return_state=True)
    assert built.is_completed(), built.message
    folder = recipe.with_name("tiny")
    facts = json.loads((folder / "report.json").read_text())
    assert facts["headline"]["num_kept"] == 3
    assert facts["funnel"]["problems"] == []
    left = artifacts_of(built.state_details.flow_run_id)["tiny-report"]
    assert "- 3 of 3 clips kept" in left
    assert f"`{folder / 'report.html'}`" in left

    (folder / "report.html").unlink()
    state = dataset_report(dataset=str(folder), compare=str(folder), return_state=True)
    assert state.is_completed(), state.message
    report = state.result()
    assert isinstance(report, Report)
    assert state.message == f"report: {folder / 'report.html'}"
    assert (folder / "report.html").stat().st_size < 15_000_000
    assert report.facts["compare"]["num_same"] == 3
    assert artifacts_of(state.state_details.flow_run_id) == {"tiny-report": report.to_markdown()}


def test_what_is_no_dataset_fails_in_words(tmp_path: Path) -> None:
    state = dataset_report(dataset=str(tmp_path), return_state=True)
    assert state.is_failed()
    assert "no dataset was built there" in str(state.message)
    with pytest.raises(ReportError):
        state.result()


def test_a_build_that_keeps_nothing_leaves_a_report_too(recipe: Path) -> None:
    state = build_dataset(recipe=str(recipe), changes=("judge.min_luma_std=200",), return_state=True)
    assert state.is_failed()
    with pytest.raises(NothingKeptError):
        state.result()
    facts = json.loads((recipe.with_name("tiny") / "report.json").read_text())
    assert facts["notes"][0].startswith("No clip was kept")
    assert {entry["reason"]: entry["count"] for entry in facts["rejections"] if entry["what"] == "clips"} == {"flat": 3}
    assert facts["thresholds"]["values"]["min_luma_std"] == 200


def test_a_report_that_cannot_be_made_does_not_end_the_build(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load_recipe(str(recipe))
    assert report_on_build(settings, Artifacts("tiny")) is None
    assert "the report could not be made: " in caplog.text
