"""A build whose batches run in the processes of a real Dask cluster on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.dataset_flow import build_dataset
from flows.runners import is_remote, task_runner
from pipeline.build.recipe import ExecutionSettings, load_recipe

pytestmark = pytest.mark.usefixtures("prefect_harness")


def built(recipe: Path, output: Path, *changes: str) -> dict[str, bytes]:
    state = build_dataset(load_recipe(recipe, [f'output="{output}"', *changes]), return_state=True)
    assert state.is_completed(), state.message
    files = [output / "manifest.json", output / "samples.parquet", *output.glob("shards/*/*")]
    return {str(file.relative_to(output)): file.read_bytes() for file in files}


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Dask's own sockets
def test_a_cluster_builds_the_same_bytes_as_threads(recipe: Path, tmp_path: Path) -> None:
    here = built(recipe, tmp_path / "here")
    there = built(recipe, tmp_path / "there", "execution.task_runner=dask", "execution.batch_size=1")
    assert here == there
    assert any(name.endswith(".tar") for name in here)


def test_a_cluster_is_told_its_address() -> None:
    execution = ExecutionSettings(task_runner="dask", cluster_address="tcp://127.0.0.1:8786")
    assert task_runner(execution).address == "tcp://127.0.0.1:8786"  # type: ignore[attr-defined]
    assert is_remote(execution)
