"""Folders that vanish while a build runs, or that were never there: it says so, and the next run goes on to the same dataset."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from pipeline.build.build import Build
from pipeline.build.recipe import BuildRecipe, load_recipe
from pipeline.errors import OutputError
from pipeline.events import Event, Listener, StageEvent, ignore
from pipeline.runtime.process_folder import _folder_below
from tests.faults.kill import RECIPE, contents, write_videos


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``videos``, and the dataset ``killed`` that an undisturbed build made of them."""
    folder = tmp_path_factory.mktemp("clean")
    write_videos(folder / "videos")
    run(recipe(folder, folder))
    return folder


def recipe(folder: Path, clean: Path, *changes: str) -> BuildRecipe:
    (folder / "killed.toml").write_text(
        RECIPE.format(output=folder / "killed", sources=clean / "videos" / "list.jsonl")
    )
    return load_recipe(folder / "killed.toml", changes)


def run(wanted: BuildRecipe, listener: Listener = ignore) -> None:
    build = Build(wanted)
    try:
        build.check()
        for batch in build.plan().batches:
            build.run_batch(batch, listener)
        build.finish(listener)
    finally:
        build.close()


@pytest.mark.parametrize(
    ("removed", "stage"),
    [
        ("scratch", "measure"),
        ("scratch", "cut"),
        ("killed", "fetch"),
        ("killed", "cut"),
        ("killed", "shard"),
        ("killed/state", "cut"),
        ("killed/state/downloads", "measure"),
    ],
)
def test_a_folder_that_is_removed_while_the_build_runs_is_named_and_the_next_run_goes_on(
    clean: Path, tmp_path: Path, removed: str, stage: str
) -> None:
    (tmp_path / "scratch").mkdir()
    wanted = recipe(tmp_path, clean, f'execution.scratch="{tmp_path / "scratch"}"')
    done: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, StageEvent) and event.stage == stage and not done:
            done.append(event.subject)
            shutil.rmtree(tmp_path / removed, ignore_errors=True)  # what is written meanwhile may stay

    with pytest.raises(OutputError, match=r"No such file or directory\. Was it removed while the build ran") as caught:
        run(wanted, listen)
    assert str(tmp_path / removed.partition("/")[0]) in str(caught.value)
    run(wanted)
    assert contents(tmp_path / "killed") == contents(clean / "killed")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_without_any_folder_for_temporary_files_the_build_says_what_to_set(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose disk is read-only, but for the output."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    _folder_below.cache_clear()
    with pytest.raises(
        OutputError,
        match=r"^TMPDIR: No usable temporary directory .*: set TMPDIR to a folder that can be written",
    ):
        run(recipe(tmp_path, clean))
