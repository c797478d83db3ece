"""Sources that are replaced, touched, mended or taken away, between runs and during one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.build.build import Build, BuildSummary
from pipeline.build.recipe import BuildRecipe
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.verify import verify
from pipeline.events import Event, SourceEvent, StageEvent, ignore
from pipeline.fetch.validators import differ, of_details, of_headers
from pipeline.runtime.hashing import sha256_of
from pipeline.synthetic.video import write_video
from tests.faults.media_build import recipe_for
from tests.faulty_server import Answer, Fault, FaultyServer
from tests.footage import FPS, noise, shots

ASKING = "download.check_for_changes=true"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four files that give one clip each."""
    folder = tmp_path_factory.mktemp("contents")
    for number in range(4):
        frames = list(shots([0.4] * number + [2.4], size=(160, 96)))[round(0.4 * number * FPS) :]
        write_video(folder / f"{number}.mp4", frames, noise(2.4, seed=number), fps=FPS)
    return sorted(folder.iterdir())


@pytest.fixture
def videos(contents: list[Path], tmp_path: Path) -> list[Path]:
    """Copies of the first three."""
    (tmp_path / "videos").mkdir()
    return [Path(shutil.copy(path, tmp_path / "videos")) for path in contents[:3]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FaultyServer() as running:
        yield running


def run(recipe: BuildRecipe, listener: Callable[[Event], None] = ignore) -> tuple[BuildSummary, list[str]]:
    """And the sources that were carried."""
    carried: list[str] = []

    def listen(event: Event) -> None:
        listener(event)
        if isinstance(event, SourceEvent):
            carried.append(event.source_id)

    build = Build(recipe)
    try:
        build.check()
        for batch in build.plan().batches:
            build.run_batch(batch, listen)
        return build.finish(ignore), sorted(carried)
    finally:
        build.close()


def entries(output: Path) -> dict[str, dict[str, object]]:
    return {entry["source_id"]: entry for entry in map(json.loads, (output / "ledger.jsonl").read_text().splitlines())}


def files(output: Path) -> dict[str, bytes]:
    names = ["manifest.json", "samples.parquet", *(shard.path for shard in read_manifest(output).shards)]
    return {name: (output / name).read_bytes() for name in names}


def replace(path: Path, content: Path) -> None:
    """As a user does who saves another file under the name."""
    shutil.copy(content, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_file_that_was_replaced_is_done_again_and_no_other(
    videos: list[Path], contents: list[Path], tmp_path: Path, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_for(videos, tmp_path, [f"execution.batch_size={batch_size}"])
    output = tmp_path / "hostile"
    run(recipe)
    replace(videos[1], contents[3])
    measured: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, StageEvent) and event.stage == "measure" and not event.reused:
            measured.append(event.subject)

    summary, carried = run(recipe, listen)
    assert carried == measured == ["s00001"]
    assert entries(output)["s00001"]["content_sha256"] == sha256_of(contents[3])
    told = "1 source(s) were replaced since an earlier run and are processed again: s00001"
    assert summary.notes[0] == told
    assert told in caplog.text
    assert verify(str(output)) == []
    of_this = files(output)
    shutil.rmtree(output)
    run(recipe)
    assert files(output) == of_this
    assert run(recipe)[1] == []


def test_a_file_that_was_only_touched_is_read_once_and_not_done_again(
    videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(videos, tmp_path)
    before = files(tmp_path / "hostile") if run(recipe) else {}
    os.utime(videos[0], (4e9, 4e9))
    replace(videos[1], Path(shutil.copy(videos[1], tmp_path / "same.mp4")))
    summary, carried = run(recipe)
    assert carried == []
    assert "replaced" not in str(summary.notes)
    assert files(tmp_path / "hostile") == before

    def read(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr("pipeline.fetch.passthrough.sha256_of", read)
    videos[2].unlink()  # what was made of it stays
    assert run(recipe)[1] == []


def test_content_that_was_changed_in_place_is_found_though_size_and_time_were_put_back(
    videos: list[Path], contents: list[Path], tmp_path: Path
) -> None:
    videos[0].write_bytes(videos[0].read_bytes().ljust(1 << 17, b"\0"))  # what is behind the last box is no media
    recipe = recipe_for(videos, tmp_path)
    run(recipe)
    before = videos[0].stat()
    other = contents[3].read_bytes().ljust(1 << 17, b"\0")
    with videos[0].open("r+b") as file:
        file.write(other)
    os.utime(videos[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    after = videos[0].stat()
    assert [getattr(after, name) for name in ("st_size", "st_mtime_ns", "st_ino")] == [
        getattr(before, name) for name in ("st_size", "st_mtime_ns", "st_ino")
    ]
    videos[1].chmod(0o600)  # read once more, but not done again
    assert run(recipe)[1] == ["s00000"]
    assert entries(tmp_path / "hostile")["s00000"]["content_sha256"] == sha256_of(videos[0])
    assert run(recipe)[1] == []


def test_files_that_failed_are_tried_again_when_they_are_others(
    videos: list[Path], contents: list[Path], tmp_path: Path
) -> None:
    good = [path.read_bytes() for path in videos]
    videos[0].write_text("This is no video.\n" * 30)
    videos[1].unlink()
    videos[2].write_bytes(good[2][: len(good[2]) // 3])  # it is media by its first bytes, and was hashed
    recipe = recipe_for([*videos, contents[3]], tmp_path)
    run(recipe)
    failed = {
        name: entry["failure"]["code"] for name, entry in entries(tmp_path / "hostile").items() if entry["failure"]
    }  # type: ignore[index]
    assert failed == {"s00000": "not_media", "s00001": "missing_file", "s00002": "not_media"}
    assert run(recipe)[1] == []
    for path, content in zip(videos, good, strict=True):
        path.write_bytes(content)
    assert run(recipe)[1] == ["s00000", "s00001", "s00002"]
    assert {str(entry["state"]) for entry in entries(tmp_path / "hostile").values()} == {"kept"}


def test_a_dry_run_says_so_and_leaves_the_records(videos: list[Path], contents: list[Path], tmp_path: Path) -> None:
    recipe = recipe_for(videos, tmp_path)
    run(recipe)
    replace(videos[1], contents[3])
    for look_only in (True, True, False):
        build = Build(recipe)
        build.check()
        plan = build.plan(look_only=look_only)
        build.close()
        assert [source.source_id for batch in plan.batches for source in batch.sources] == ["s00001"]
        assert plan.num_finished_sources == 2
        records = [path.read_text() for path in (tmp_path / "hostile" / "state" / "done").rglob("*.json*")]
        assert any('"source_id":"s00001"' in text for text in records) == look_only


@pytest.mark.parametrize("stage", ["fetch", "measure"])
def test_a_file_that_is_replaced_while_it_is_worked_on_is_begun_again(
    videos: list[Path], contents: list[Path], tmp_path: Path, stage: str
) -> None:
    """Else the measures or cuts of the one would stand under the name of the other."""
    recipe = recipe_for(videos, tmp_path)
    output = tmp_path / "hostile"
    replaced: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, StageEvent) and event.stage == stage and event.subject == "s00001" and not replaced:
            replaced.append(event.subject)
            replace(videos[1], contents[3])

    run(recipe, listen)
    assert replaced
    of_this = files(output)
    assert entries(output)["s00001"]["content_sha256"] == sha256_of(contents[3])
    shutil.rmtree(output)
    run(recipe)
    assert files(output) == of_this


def test_a_file_that_is_always_another_or_taken_away_fails_for_now(
    videos: list[Path], contents: list[Path], tmp_path: Path
) -> None:
    recipe = recipe_for(videos, tmp_path)
    turns = [0]

    def listen(event: Event) -> None:
        if not isinstance(event, StageEvent) or event.stage != "measure":
            return
        if event.subject == "s00000":
            videos[0].unlink()
        if event.subject == "s00001":
            turns[0] += 1
            replace(videos[1], contents[turns[0] % 4])
            with videos[1].open("ab") as file:
                file.write(bytes(turns[0]))

    run(recipe, listen)
    found = entries(tmp_path / "hostile")
    assert found["s00001"]["failure"]["message"] == "the file was replaced 3 times while it was processed"  # type: ignore[index]
    assert found["s00001"]["failure"]["transient"] is True  # type: ignore[index]
    gone = found["s00000"]["failure"]
    assert gone["code"] == "changing" and gone["transient"] is True  # type: ignore[index]
    assert gone["message"].startswith("the file changed while it was processed: there is no file")  # type: ignore[index]
    assert found["s00002"]["state"] == "kept"
    shutil.copy(contents[0], videos[0])
    assert run(recipe)[1] == ["s00000", "s00001"]
    assert {str(entry["state"]) for entry in entries(tmp_path / "hostile").values()} == {"kept"}


def with_links(recipe: BuildRecipe, *links: str) -> BuildRecipe:
    (path,) = map(Path, recipe.sources)
    path.write_text("".join(json.dumps({"id": f"s{n:05d}", "url": link}) + "\n" for n, link in enumerate(links)))
    return recipe


def test_a_server_is_asked_only_where_that_is_wanted(
    contents: list[Path], server: FaultyServer, tmp_path: Path
) -> None:
    body, other = contents[0].read_bytes(), contents[3].read_bytes()

    def serve(name: str, content: bytes, **headers: str) -> str:
        told = {header.replace("_", "-"): value for header, value in headers.items()}
        return server.serve(f"/{name}.mp4", Answer(body=content, headers=told))

    links = [
        serve("tag", body, ETag='"one"'),
        serve("date", contents[1].read_bytes(), Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT"),
        serve("same", contents[2].read_bytes(), ETag='"three"'),
    ]
    asking = with_links(recipe_for(contents[:3], tmp_path, [ASKING, "download.retries=0"]), *links)
    never = with_links(recipe_for(contents[:3], tmp_path, ["download.retries=0"]), *links)
    run(never)
    assert run(asking)[1] == []
    serve("tag", other, ETag='"two"')
    num_hits = server.hits()
    assert run(never)[1] == []
    assert server.hits() == num_hits
    server.serve("/date.mp4", Answer(status=503))
    summary, carried = run(asking)
    assert carried == ["s00000"]
    assert entries(tmp_path / "hostile")["s00000"]["content_sha256"] == sha256_of(contents[3])
    assert summary.notes[:2] == (
        "1 source(s) were replaced since an earlier run and are processed again: s00000",
        "1 source(s) could not be checked for changes, and their earlier results are kept: s00001",
    )
    serve("date", body, Last_Modified="Tue, 02 Jan 2024 00:00:00 GMT")
    assert run(asking)[1] == ["s00001"]
    assert verify(str(tmp_path / "hostile")) == []


def test_without_a_network_everything_stays(contents: list[Path], tmp_path: Path, server: FaultyServer) -> None:
    link = server.serve("/a.mp4", Answer(body=contents[0].read_bytes(), headers={"ETag": '"one"'}))
    asking = with_links(recipe_for(contents[:1], tmp_path, [ASKING, "download.stall_seconds=1.0"]), link)
    run(asking)
    server.serve("/a.mp4", Answer(fault=Fault.STALL_BEFORE_HEADERS))
    summary, carried = run(asking)
    assert carried == []
    assert summary.notes[0].startswith("1 source(s) could not be checked")
    assert entries(tmp_path / "hostile")["s00000"]["state"] == "kept"


def test_files_of_any_file_system_are_asked(contents: list[Path], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/changes/a.mp4", contents[0].read_bytes())
    asking = with_links(recipe_for(contents[:1], tmp_path, [ASKING]), "memory://changes/a.mp4")
    run(asking)
    assert run(asking)[1] == []
    memory.pipe("/changes/a.mp4", contents[3].read_bytes())
    assert run(asking)[1] == ["s00000"]
    assert entries(tmp_path / "hostile")["s00000"]["content_sha256"] == sha256_of(contents[3])


def test_what_decides_whether_a_file_has_changed() -> None:
    assert differ({"etag": "a", "length": "3"}, {"etag": "a", "length": "4"}) is False
    assert differ({"etag": "a", "length": "3"}, {"length": "4"}) is True
    assert differ({"last_modified": "x", "length": "3"}, {"last_modified": "x", "length": "3"}) is False
    assert differ({"etag": "a"}, {"length": "4"}) is None
    assert of_headers({"Content-Length": "10", "Content-Range": "bytes 0-9/300"}) == {"length": "300"}
    assert of_headers({"Content-Length": "10", "Content-Encoding": "gzip", "ETag": "a"}) == {"etag": "a"}
    assert of_details({"size": 0, "mtime": 3.5, "name": "a"}) == {"last_modified": "3.5"}
