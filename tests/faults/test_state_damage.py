"""A finished dataset whose ``state`` was damaged: the same command ends with the same bytes, and says what it made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.build.build import Build
from pipeline.build.recipe import load_recipe
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.verify import verify
from pipeline.events import Event, StageEvent
from tests.faults.kill import RECIPE, contents, write_videos

PACKED_ANEW = "shards.max_samples=2"
DAMAGES: tuple[Callable[[Path], object], ...] = (
    lambda path: os.truncate(path, path.stat().st_size // 2),
    lambda path: os.truncate(path, 0),
    lambda path: path.write_bytes(bytes(path.stat().st_size)),
    Path.unlink,
)
"""Halved, emptied, filled with zeros, deleted."""
TAKEN_FROM_RECORDS = ("probed", "measured", "previews", "prompts", "downloads")
"""Folders of ``state`` that nothing is read from as long as the sources' records are there."""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``videos``, the dataset ``killed`` that was made of them, and ``expected``: the same, packed anew."""
    folder = tmp_path_factory.mktemp("clean")
    write_videos(folder / "videos")
    run(folder / "killed", folder)
    shutil.copytree(folder / "killed", folder / "expected")
    run(folder / "expected", folder, PACKED_ANEW)
    return folder


@pytest.fixture
def dataset(clean: Path, tmp_path: Path) -> Path:
    shutil.copytree(clean / "killed", tmp_path / "killed")
    return tmp_path / "killed"


def run(output: Path, clean: Path, *changes: str) -> list[Event]:
    """The build in this process."""
    recipe = output.with_suffix(".toml")
    recipe.write_text(RECIPE.format(output=output, sources=clean / "videos" / "list.jsonl") + "[encoders]\n")
    events: list[Event] = []
    running = Build(load_recipe(recipe, changes))
    try:
        running.check()
        for batch in running.plan().batches:
            running.run_batch(batch, events.append)
        running.finish(events.append)
    finally:
        running.close()
    return events


def check_packed_anew(dataset: Path, clean: Path) -> list[Event]:
    events = run(dataset, clean, PACKED_ANEW)
    assert contents(dataset) == contents(clean / "expected")
    assert verify(str(dataset)) == []
    return events


def made(events: Sequence[Event], stage: str) -> set[str]:
    """Sources that went through a stage anew."""
    return {
        event.subject for event in events if isinstance(event, StageEvent) and event.stage == stage and not event.reused
    }


def damage(dataset: Path, pattern: str, first: int) -> list[Path]:
    """Damages all files that fit, each in another way than its neighbours; returns them."""
    files = [path for path in sorted((dataset / "state").glob(pattern)) if path.is_file()]
    assert files
    for number, path in enumerate(files):
        DAMAGES[(first + number) % len(DAMAGES)](path)
    return files


@pytest.mark.parametrize("first", range(len(DAMAGES)))
@pytest.mark.parametrize("pattern", ["done/*/*.jsonl", "cuts/*/*/*.mp4", "cuts/*/*/sound.flac", "cuts/*/*/cut.json"])
def test_what_the_end_of_a_build_needs_is_made_again(
    pattern: str, first: int, dataset: Path, clean: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = damage(dataset, pattern, first)
    events = check_packed_anew(dataset, clean)
    assert made(events, "measure") == made(events, "embed") == set()
    assert bool(made(events, "cut")) == pattern.endswith((".mp4", ".flac"))
    if pattern != "cuts/*/*/cut.json":  # which is not needed: the records hold it, too
        named = [
            path
            for path in damaged
            if path.exists() and any(told in caplog.text for told in (str(path), str(path.parent)))
        ]
        assert len(named) >= len(damaged) // 2, caplog.text


def test_embeddings_are_made_again_from_what_was_kept_of_the_decode(
    dataset: Path, clean: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = damage(dataset, "embedded/*/*.npz", 0)
    events = check_packed_anew(dataset, clean)
    assert made(events, "embed") == {"a", "b", "c", "d"}
    assert made(events, "measure") == made(events, "cut") == set()
    assert all(str(path) in caplog.text for path in damaged)


def test_damaged_previews_cost_another_decode(dataset: Path, clean: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sound that was cut short, say, still decodes: it is told by its sum."""
    shutil.rmtree(dataset / "state" / "embedded")
    sounds = sorted((dataset / "state" / "previews").rglob("*.flac"))
    for path in sounds[:2]:
        os.truncate(path, path.stat().st_size // 2)
    events = check_packed_anew(dataset, clean)
    assert len(made(events, "measure")) == 2
    assert all(
        f"{path} is not what was written: the file is decoded again for them" in caplog.text for path in sounds[:2]
    )


@pytest.mark.parametrize("first", range(0, len(DAMAGES), 2))
@pytest.mark.parametrize("pattern", ["probed/*/*", "measured/*/*", "cuts/*/*/*.mp4", "cuts/*/*/cut.json"])
def test_what_a_source_is_decided_by_is_made_again(
    pattern: str, first: int, dataset: Path, clean: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the records every stage is looked up."""
    shutil.rmtree(dataset / "state" / "done")
    damaged = damage(dataset, pattern, first)
    events = check_packed_anew(dataset, clean)
    assert made(events, "embed") == set()
    assert bool(made(events, "measure")) == pattern.startswith("measured")
    assert sum(str(path) in caplog.text or str(path.parent) in caplog.text for path in damaged) >= len(damaged) // 2


def test_damage_to_what_is_not_needed_is_not_noticed(dataset: Path, clean: Path) -> None:
    for name in TAKEN_FROM_RECORDS:
        damage(dataset, f"{name}/**/*", 0)
    damage(dataset, "lock", 2)
    assert made(check_packed_anew(dataset, clean), "cut") == set()


@pytest.mark.parametrize("name", ["cuts", "done", "probed", "measured", "previews", "prompts", "downloads"])
def test_any_folder_of_the_state_may_be_deleted(name: str, dataset: Path, clean: Path) -> None:
    shutil.rmtree(dataset / "state" / name)
    check_packed_anew(dataset, clean)


def test_a_cut_that_cannot_be_made_again_costs_its_source_and_is_counted(dataset: Path, clean: Path) -> None:
    shutil.rmtree(dataset / "state" / "cuts")
    source = clean / "videos" / "d.mp4"
    source.rename(clean / "away.mp4")
    try:
        run(dataset, clean, PACKED_ANEW)
    finally:
        (clean / "away.mp4").rename(source)
    assert verify(str(dataset)) == []
    manifest = read_manifest(str(dataset))
    assert manifest.sources.failures["missing_file"] == 1
    assert manifest.clips.states["kept"] == 7


def test_shards_that_are_no_more_wanted_go_and_what_is_not_ours_stays(
    dataset: Path, clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the build before was killed between a tar and its index, and the recipe has another rendition now."""
    (dataset / "shards" / "96" / "notes.txt").write_text("mine")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(
            "pipeline.dataset.shards.ShardRecord", killed
        )  # the first thing that is done after a tar was written
        with pytest.raises(KeyboardInterrupt):
            run(dataset, clean, 'cut.renditions=[{name="32", short_side_px=32}]')
    assert list((dataset / "shards" / "32").iterdir())
    run(dataset, clean)
    assert sorted(path.name for path in (dataset / "shards").iterdir()) == ["48", "96"]
    (dataset / "shards" / "96" / "notes.txt").unlink()
    assert contents(dataset) == contents(clean / "killed")
    run(dataset, clean, 'cut.renditions=[{name="48", short_side_px=48}]')
    assert [path.name for path in (dataset / "shards").iterdir()] == ["48"]
    assert verify(str(dataset)) == []
