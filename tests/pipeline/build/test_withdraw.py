"""Sources are taken out of a built dataset: only their shards are written anew, and no later build takes them up again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.build.build import Build
from pipeline.build.recipe import load_recipe
from pipeline.build.withdraw import withdraw
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.shards import read_index
from pipeline.dataset.tables import EMBEDDINGS_NAME, read_table
from pipeline.dataset.verify import verify
from pipeline.errors import ManifestError, NothingKeptError
from pipeline.events import ignore
from pipeline.manifest import main
from pipeline.runtime.folder import Folder
from pipeline.schema import source_of_key
from tests.faults.kill import RECIPE, names_of, write_videos

NOT_COMPARED = ("state/", "timings.jsonl")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sources, the recipe and the dataset ``killed``: nine clips, in three shards of two renditions."""
    folder = tmp_path_factory.mktemp("built")
    write_videos(folder / "videos")
    build(folder)
    return folder


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(built / "killed", tmp_path / "killed")
    return tmp_path / "killed"


def build(folder: Path, videos: Path | None = None) -> None:
    """Builds the dataset in ``folder``, or goes on with it."""
    recipe = folder / "killed.toml"
    text = RECIPE.format(output=folder / "killed", sources=(videos or folder / "videos") / "list.jsonl")
    recipe.write_text(text + "[encoders]\n")
    running = Build(load_recipe(recipe))
    try:
        running.check()
        for batch in running.plan().batches:
            running.run_batch(batch, ignore)
        running.finish(ignore)
    finally:
        running.close()


def files(dataset: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and inodes of the files of a dataset."""
    names = [name for name in names_of(dataset) if not name.startswith(NOT_COMPARED)]
    return {name: ((dataset / name).read_bytes(), (dataset / name).stat().st_ino) for name in names}


def contents(dataset: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in files(dataset).items()}


def shards_with(dataset: Path, source_id: str) -> set[str]:
    output = Folder(dataset)
    found = set()
    for shard in read_manifest(str(dataset)).shards:
        index = read_index(output, shard.path)
        assert index is not None
        found |= {shard.path for one in index["samples"] if source_of_key(one["key"]) == source_id}
    return found


def test_only_the_shards_of_a_withdrawn_source_are_written_anew(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, theirs = files(dataset), shards_with(dataset, "d")
    assert len(theirs) == 2  # one clip, two renditions
    assert main(["withdraw", str(dataset), "--source", "d"]) == 0
    assert capsys.readouterr().out == (
        "withdrawn until now: 1 source(s) with 1 sample(s)\n"
        "shards rewritten: 1 of rendition 48, 1 of rendition 96; removed: 0\n"
    )
    after = files(dataset)
    same_inode = {name for name in before if name.endswith(".tar") and after[name] == before[name]}
    assert same_inode == {name for name in before if name.endswith(".tar")} - theirs
    assert verify(str(dataset)) == []
    assert shards_with(dataset, "d") == set()
    manifest, earlier = read_manifest(str(dataset)), json.loads(before["manifest.json"][0])
    assert manifest.sources.reasons == {"no_audio": 1, "withdrawn": 1}
    assert manifest.sources.total == sum(earlier["sources"]["states"].values())
    assert manifest.clips.states["kept"] == earlier["clips"]["states"]["kept"] - 1
    keys = [key for batch in read_table(Folder(dataset), EMBEDDINGS_NAME, ["key"]) for key in batch["key"].to_pylist()]
    assert {source_of_key(key) for key in keys} == {"a", "b", "c"}
    (entry,) = (
        e for e in map(json.loads, (dataset / "ledger.jsonl").read_text().splitlines()) if e["source_id"] == "d"
    )
    assert (entry["state"], entry["reason"], entry["clips"]) == ("rejected", "withdrawn", [])


def test_what_was_kept_of_a_withdrawn_source_alone_is_gone(dataset: Path) -> None:
    records = [
        json.loads(line)
        for path in sorted((dataset / "state" / "done").rglob("*.jsonl"))
        for line in path.read_text().splitlines()[1:]
    ]
    before = names_of(dataset)
    withdraw(str(dataset), ["d"])
    (record,) = (record for record in records if record["source"]["source_id"] == "d")
    key, embedded, (clip,) = record["measured_key"], record["embedded_key"], record["clips"]
    gone = {
        f"state/measured/{key[:2]}/{key}.json",
        *(f"state/previews/{key[:2]}/{key}{suffix}" for suffix in (".flac", ".frames.npz")),
        f"state/embedded/{embedded[:2]}/{embedded}.npz",
        *(
            f"state/cuts/{clip['cut_key'][:2]}/{clip['cut_key']}/{name}"
            for name in ("cut.json", "sound.flac", "48.mp4", "96.mp4")
        ),
    }
    assert before - names_of(dataset) == gone
    assert names_of(dataset) - before == {"withdrawn.json"}


def test_a_record_that_cannot_be_read_is_told_for_what_may_be_left(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = [
        path for path in (dataset / "state" / "done").rglob("*.jsonl") if b'"source_id":"d"' in path.read_bytes()
    ]
    for path in damaged:
        os.truncate(path, path.stat().st_size // 2)
    withdraw(str(dataset), ["d"])
    assert all(f"{path} is damaged: files of a source whose record" in caplog.text for path in damaged)
    assert verify(str(dataset)) == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [("samples.parquet", " cannot be read (Parquet"), ("ledger.jsonl", ":3 is damaged: run the build again")],
)
def test_a_damaged_table_is_named_and_the_build_finishes_what_was_begun(
    dataset: Path, built: Path, name: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(dataset / name, (dataset / name).stat().st_size // 2)
    assert main(["withdraw", str(dataset), "--source", "d"]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(f"error: {dataset}/{name}{problem}")
    assert "again" in message  # what to do: build
    build(dataset.parent, built / "videos")
    assert main(["withdraw", str(dataset), "--source", "d"]) == 0
    assert verify(str(dataset)) == []
    assert shards_with(dataset, "d") == set()


@pytest.mark.parametrize("gone", [["d"], ["a", "c"]])
def test_a_later_build_gives_the_same_without_building_it_again(built: Path, tmp_path: Path, gone: list[str]) -> None:
    shutil.copytree(built / "killed", tmp_path / "killed")
    withdraw(str(tmp_path / "killed"), gone)
    before = files(tmp_path / "killed")
    build(tmp_path, built / "videos")
    after = files(tmp_path / "killed")
    shards = [name for name in before if name.startswith("shards/")]
    assert {name: after.get(name) for name in shards} == {name: before[name] for name in shards}
    assert {name for name, (content, _) in after.items() if content != before[name][0]} == set()
    assert after.keys() == before.keys()
    assert not list((tmp_path / "killed" / "state" / "done").rglob("open/*"))
    # and from nothing, with nothing but the word that they are withdrawn
    shutil.rmtree(tmp_path / "killed" / "state")
    for name in after:
        if name != "withdrawn.json":
            (tmp_path / "killed" / name).unlink()
    build(tmp_path, built / "videos")
    assert contents(tmp_path / "killed") == {name: content for name, (content, _) in before.items()}


@pytest.mark.parametrize(
    "step", ["write_shard", "drop_sources", "line_of", "write_manifest", "remove_other_shards", "remove_state_files"]
)
@pytest.mark.parametrize("late", [False, True])
def test_a_withdrawal_that_was_killed_is_finished_by_the_same_command(
    built: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, late: bool
) -> None:
    """It ends at the first call of each step: before or after the call."""
    expected = tmp_path / "expected"
    shutil.copytree(built / "killed", expected)
    withdraw(str(expected), ["a", "c"])
    with monkeypatch.context() as patched:
        patched.setattr(f"pipeline.build.withdraw.{step}", killed_at(step, late=late))
        with pytest.raises(KeyboardInterrupt):
            withdraw(str(dataset), ["a", "c"])
    withdraw(str(dataset), ["a", "c"])
    assert contents(dataset) == contents(expected)
    assert names_of(dataset) == names_of(expected)
    assert verify(str(dataset)) == []


def killed_at(step: str, *, late: bool) -> Callable[..., object]:
    """The step, cut off."""
    import pipeline.build.withdraw

    real = getattr(pipeline.build.withdraw, step)

    def cut_off(*args: object) -> object:
        if late:
            real(*args)
        raise KeyboardInterrupt

    return cut_off


def test_a_shard_whose_index_a_kill_took_is_written_anew(dataset: Path, tmp_path: Path) -> None:
    """The journal knows what the index said, so that a later build leaves the shard alone."""
    expected = tmp_path / "expected"
    shutil.copytree(dataset, expected)
    withdraw(str(expected), ["d"])
    path = min(shards_with(dataset, "d"))
    index = read_index(Folder(dataset), path)
    assert index is not None
    journal = {one["key"]: one["content_id"] for one in index["samples"]}
    (dataset / "state" / "withdrawing.json").write_text(json.dumps(journal))
    (dataset / path.replace(".tar", ".index.json")).unlink()
    withdraw(str(dataset), ["d"])
    assert verify(str(dataset)) == []
    assert contents(dataset) == contents(expected)
    assert names_of(dataset) == names_of(expected)


def test_a_shard_of_withdrawn_clips_alone_is_removed(dataset: Path) -> None:
    output = Folder(dataset)
    shard = read_manifest(str(dataset)).shards[0]
    index = read_index(output, shard.path)
    assert index is not None
    ids = {source_of_key(one["key"]) for one in index["samples"]}
    done = withdraw(str(dataset), sorted(ids))
    assert shard.path in done.removed
    assert not (dataset / shard.path).exists()
    assert verify(str(dataset)) == []


def test_members_are_the_same_bytes_in_the_shard_that_is_written_anew(dataset: Path) -> None:
    output, path = Folder(dataset), min(shards_with(dataset, "d"))

    def samples() -> dict[str, bytes]:
        index = read_index(output, path)
        assert index is not None
        tar = np.frombuffer((dataset / path).read_bytes(), np.uint8)
        return {
            f"{one['key']}.{name}": tar[at : at + size].tobytes()
            for one in index["samples"]
            for name, (at, size) in one["members"].items()
        }

    before = samples()
    withdraw(str(dataset), ["d"])
    assert samples() == {name: content for name, content in before.items() if not name.startswith("d_")}
    assert len(samples()) == len(before) - 5


def test_a_report_that_is_there_is_made_again(dataset: Path) -> None:
    from pipeline.report.make import make_report

    make_report(str(dataset))
    assert json.loads((dataset / "report.json").read_text())["headline"]["num_kept_sources"] == 4
    withdraw(str(dataset), ["d"])
    assert json.loads((dataset / "report.json").read_text())["headline"]["num_kept_sources"] == 3


def test_what_cannot_be_withdrawn_changes_nothing(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(dataset)
    with pytest.raises(ManifestError, match=r"has no source of the id 'x', 'y': nothing was withdrawn"):
        withdraw(str(dataset), ["a", "y", "x"])
    with pytest.raises(NothingKeptError, match=r"no sample would be left\. Delete the dataset instead"):
        withdraw(str(dataset), ["a", "b", "c", "d"])
    assert main(["withdraw", str(dataset / "absent"), "--source", "a"]) == 2
    assert "no dataset was built there" in capsys.readouterr().err
    assert not (dataset / "absent").exists()
    assert files(dataset) == before


def test_a_damaged_list_of_withdrawn_sources_stops_a_build(dataset: Path, built: Path) -> None:
    (dataset / "withdrawn.json").write_text("{")
    with pytest.raises(ManifestError, match=r"withdrawn\.json is damaged"):
        build(dataset.parent, built / "videos")
