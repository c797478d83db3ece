"""Bugs and full disks: they end a build soon and lose nothing that was finished; or, where the recipe says so, they cost their source."""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.build import source_results
from pipeline.build.build import Build, BuildSummary
from pipeline.build.recipe import BuildRecipe
from pipeline.dataset.manifest import read_manifest
from pipeline.encoders.mel import check_sound
from pipeline.errors import OutputError
from pipeline.events import Event, SourceEvent, ignore
from pipeline.fetch.errors import is_ours
from pipeline.ledger import main as ledger_main
from pipeline.measure.video import MeasuredVideo, measure_video
from pipeline.report.facts import gather
from pipeline.report.tables import Tables
from pipeline.runtime.folder import Folder
from pipeline.synthetic.video import write_video
from tests.faults.media_build import recipe_for
from tests.faulty_server import Answer, Fault, FaultyServer
from tests.footage import FPS, noise, shots

SOON_SECONDS = 60.0  # a busy machine; what is waited for here would otherwise take an hour
PATIENT = [f"download.{name}=3600.0" for name in ("timeout_seconds", "socket_timeout_seconds", "stall_seconds")]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files that give a clip each."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        frames = list(shots([0.4] * number + [2.4], size=(160, 96)))[round(0.4 * number * FPS) :]
        write_video(folder / f"{number}.mp4", frames, noise(2.4, seed=number), fps=FPS)
    return sorted(folder.iterdir())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FaultyServer() as running:
        yield running


def measure_badly(path: Path, *args: Any, **kwargs: Any) -> MeasuredVideo:
    """With a bug that one of the videos meets, in the process that decodes."""
    if path.name == "1.mp4":
        raise IndexError("list index out of range")
    return measure_video(path, *args, **kwargs)


def run(recipe: BuildRecipe, listener: Any = ignore) -> BuildSummary:
    build = Build(recipe)
    try:
        build.check()
        for batch in build.plan().batches:
            build.run_batch(batch, listener)
        return build.finish(ignore)
    finally:
        build.close()


def left(recipe: BuildRecipe) -> set[str]:
    """The sources that the next run would carry."""
    build = Build(recipe)
    try:
        build.check()
        return {source.source_id for batch in build.plan().batches for source in batch.sources}
    finally:
        build.close()


def ends(output: Path) -> dict[str, str]:
    entries = map(json.loads, (output / "ledger.jsonl").read_text().splitlines())
    return {entry["source_id"]: (entry["failure"] or {}).get("code") or entry["state"] for entry in entries}


def with_a_link(recipe: BuildRecipe, link: str) -> BuildRecipe:
    """The first source is this link."""
    (path,) = map(Path, recipe.sources)
    path.write_text(json.dumps({"id": "first", "url": link}) + "\n" + path.read_text())
    return recipe


def test_a_bug_stops_the_run_soon_and_what_was_finished_stays(
    videos: list[Path], server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a source that nobody waits for is at work."""
    silent = server.serve("/silent.mp4", Answer(fault=Fault.STALL_BEFORE_HEADERS))
    recipe = with_a_link(recipe_for(videos, tmp_path, [*PATIENT, "execution.workers=1"]), silent)
    monkeypatch.setattr(source_results, "measure_video", measure_badly)
    events: list[Event] = []
    started = time.monotonic()
    with pytest.raises(IndexError, match="list index out of range") as caught:
        run(recipe, events.append)
    assert time.monotonic() - started < SOON_SECONDS
    assert caught.value.__notes__[0] == f"in the stage measure of source s00001 ({videos[1]})"
    assert 'set execution.bugs="record"' in caught.value.__notes__[1]
    assert "in measure_badly" in str(caught.value.__cause__)
    finished = {event.source_id for event in events if isinstance(event, SourceEvent)}
    monkeypatch.setattr(source_results, "measure_video", measure_video)
    assert left(recipe) == {"first", "s00000", "s00001", "s00002"} - finished
    server.serve("/silent.mp4", Answer(status=404))
    run(recipe)
    assert ends(tmp_path / "hostile") == {"first": "http_404", "s00000": "kept", "s00001": "kept", "s00002": "kept"}


@pytest.mark.logs_errors
def test_a_long_run_may_go_on_and_the_next_version_tries_again(
    videos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipe_for(videos, tmp_path, ['execution.bugs="record"'])
    monkeypatch.setattr(source_results, "measure_video", measure_badly)
    events: list[Event] = []
    summary = run(recipe, events.append)
    assert ends(tmp_path / "hostile") == {"s00000": "kept", "s00001": "bug", "s00002": "kept"}
    assert [event.source_id for event in events if isinstance(event, SourceEvent) and event.code == "bug"] == ["s00001"]
    assert summary.notes[0].startswith("SOURCES THAT MET A BUG of this program: 1.")
    with Tables(Folder(tmp_path / "hostile")) as tables:
        facts = gather(Folder(tmp_path / "hostile"), read_manifest(tmp_path / "hostile"), tables)
    assert facts["notes"][0].startswith("SOURCES THAT MET A BUG of this program: 1.")
    (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert told.exc_info is not None and "in measure_badly" in str(told.exc_info[1].__cause__)  # type: ignore[union-attr]
    assert ledger_main(["show", str(tmp_path / "hostile"), "s00001"]) == 0
    assert "failed at measure: bug: IndexError: list index out of range" in capsys.readouterr().out
    assert left(recipe) == set()
    again = recipe.model_copy(update={"execution": recipe.execution.model_copy(update={"try_failed_again": True})})
    assert left(again) == {"s00001"}
    monkeypatch.setattr("pipeline.dataset.bugs.code_version", lambda: "another")
    assert left(recipe) == {"s00001"}
    monkeypatch.setattr(source_results, "measure_video", measure_video)
    assert "BUG" not in str(run(recipe).notes)
    assert set(ends(tmp_path / "hostile").values()) == {"kept"}


def test_an_error_of_a_package_in_the_package_is_ours_and_one_of_a_library_is_not() -> None:
    with pytest.raises(ValueError, match="must be mono floats") as of_ours:
        check_sound(np.zeros((2, 2), np.float32))
    with pytest.raises(json.JSONDecodeError) as of_a_library:
        json.loads("{")
    assert is_ours(of_ours.value)
    assert not is_ours(of_a_library.value)


def test_a_full_disk_does_not_wait_for_sources_that_are_running(
    videos: list[Path], server: FaultyServer, tmp_path: Path
) -> None:
    silent = server.serve("/silent.mp4", Answer(fault=Fault.STALL_BEFORE_HEADERS))
    recipe = with_a_link(recipe_for(videos, tmp_path, PATIENT), silent)

    def listen(event: Event) -> None:
        if isinstance(event, SourceEvent):
            raise OSError(errno.ENOSPC, "No space left on device", f"{tmp_path}/hostile/state/done")

    started = time.monotonic()
    with pytest.raises(OutputError, match=f"no space left on the disk of {tmp_path}/hostile: free some and run"):
        run(recipe, listen)
    assert time.monotonic() - started < SOON_SECONDS
    assert left(recipe) == {"first", "s00000", "s00001", "s00002"}


def test_a_broken_connection_to_the_state_leaves_the_other_batches(videos: list[Path], tmp_path: Path) -> None:
    """Prefect runs the batch once more."""
    recipe = recipe_for(videos, tmp_path, ["execution.batch_size=1"])
    build = Build(recipe)
    try:
        build.check()
        first, *others = build.plan().batches

        def listen(event: Event) -> None:
            raise ConnectionResetError(errno.ECONNRESET, "reset by peer")

        with pytest.raises(ConnectionResetError):
            build.run_batch(first, listen)
        assert [build.run_batch(batch, ignore).states for batch in (*others, first)] == [{"kept": 1}] * 3
    finally:
        build.close()
