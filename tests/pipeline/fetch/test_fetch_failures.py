"""Sources that fail for good, and builds of other thresholds after them: real builds against a real server on loopback."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import source_file
from pipeline.build.build import Build, BuildPlan, BuildSummary
from pipeline.build.recipe import load_recipe
from pipeline.errors import DownloadError, NothingKeptError
from pipeline.events import ignore
from pipeline.fetch.failures import FetchFailures
from pipeline.fetch.settings import DownloadSettings
from pipeline.media import ffmpeg as media
from pipeline.runtime.folder import Folder
from pipeline.runtime.hashing import sha256_of
from pipeline.synthetic.video import write_video
from tests.faulty_server import Answer, FaultyServer
from tests.footage import FPS, noise, shots

RECIPE = """
name = "kept"
output = "{output}"
sources = ["{sources}"]
probe = {{ min_short_side_px = 96 }}
clips = {{ length_seconds = 3.0, min_seconds = 2.5 }}
cut = {{ renditions = [{{ name = "96", short_side_px = 96 }}], preset = "ultrafast" }}
download = {{ retries = 0, pause_after = 1000 }}
dedup = {{ reject_duplicates = false }}
"""
OTHER_THRESHOLD = "judge.max_black_share=0.9"
FOR_GOOD = {"gone": "http_404", "page": "not_media", "nothing": "empty", "half": "truncated", "stub": "not_media"}


class Place:
    """An output, the list, and the server that its links lead to."""

    def __init__(self, folder: Path, server: FaultyServer) -> None:
        self.folder, self.server, self.output = folder, server, folder / "kept"
        self.num_seen = 0

    def build(self, *changes: str) -> tuple[BuildPlan, BuildSummary]:
        build = Build(load_recipe(self.folder / "kept.toml", changes))
        try:
            build.check()
            plan = build.plan()
            for batch in plan.batches:
                build.run_batch(batch, ignore)
            return plan, build.finish(ignore)
        finally:
            build.close()

    def ledger(self) -> dict[str, dict[str, Any]]:
        lines = map(json.loads, (self.output / "ledger.jsonl").read_text().splitlines())
        return {line["source_id"]: line for line in lines}

    def asked_for(self) -> set[str]:
        """What the server was asked for since this was called last."""
        names = [hit.path.removeprefix("/").removesuffix(".mp4") for hit in self.server.requests[self.num_seen :]]
        self.num_seen += len(names)
        return set(names)

    def failure_files(self) -> dict[str, int]:
        """When each failure was written: a decode that fails writes its failure anew."""
        files = (self.output / "state").rglob("*.json")
        return {str(file): file.stat().st_mtime_ns for file in files if file.read_bytes().startswith(b'{"failed"')}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, shots([3.0]), noise(3, seed=5), fps=FPS, faststart=True, gop=25)
    return path.read_bytes()


@pytest.fixture
def place(film: bytes, tmp_path: Path) -> Iterator[Place]:
    """After a first build in which every source but one fails in its own way."""
    with FaultyServer() as server:
        server.serve("/good.mp4", Answer(body=film))
        server.serve("/gone.mp4", Answer(status=404))
        server.serve("/page.mp4", Answer(body=b"<html><body>Gone fishing.</body></html>", content_type="text/html"))
        server.serve("/nothing.mp4", Answer(body=b""))
        server.serve("/half.mp4", Answer(body=film[: len(film) // 2]))
        server.serve("/stub.mp4", Answer(body=film[:32] + b"\xff" * 2000))
        server.serve("/busy.mp4", Answer(status=503), Answer(status=429), Answer(body=film))
        rows = [f"{name},{server.url(f'/{name}.mp4')}" for name in [*FOR_GOOD, "busy", "good"]]
        (tmp_path / "list.csv").write_text("\n".join(["id,url", *rows]) + "\n")
        (tmp_path / "kept.toml").write_text(RECIPE.format(output=tmp_path / "kept", sources=tmp_path / "list.csv"))
        place = Place(tmp_path, server)
        place.build()
        found = {name: line["failure"]["code"] for name, line in place.ledger().items() if line["failure"]}
        assert found == {**FOR_GOOD, "busy": "http_5xx"}
        assert place.asked_for() == {*FOR_GOOD, "busy", "good"}
        yield place


def test_another_threshold_asks_for_and_decodes_nothing_that_failed_for_good(place: Place) -> None:
    before, written = place.ledger(), place.failure_files()
    assert len(written) == len(FOR_GOOD)
    shutil.rmtree(place.output / "state" / "downloads" / "objects")  # so that a decode would have to ask the server
    plan, _ = place.build(OTHER_THRESHOLD)
    assert sum(len(batch.sources) for batch in plan.batches) == len(before)
    assert place.asked_for() == {"busy"}
    assert place.failure_files() == written
    after = place.ledger()
    assert {name: after[name] for name in [*FOR_GOOD, "good"]} == {name: before[name] for name in [*FOR_GOOD, "good"]}
    assert after["busy"]["failure"]["code"] == "http_429"
    _, summary = place.build(OTHER_THRESHOLD)
    assert place.asked_for() == {"busy"}
    assert place.ledger()["busy"]["state"] == "kept"
    assert any("2 kept, 0 rejected, 5 failed" in line for line in summary.funnel)


def test_settings_that_may_change_the_answer_ask_again_and_those_of_pace_do_not(place: Place) -> None:
    place.build("download.stall_seconds=50", "download.max_per_host=2")
    assert place.asked_for() == {"busy"}
    place.build("download.max_bytes=1000000000")
    assert place.asked_for() == {"gone", "page", "nothing", "busy"}  # the others have been fetched


def test_what_failed_for_good_is_tried_again_on_demand_under_the_same_recipe(place: Place, film: bytes) -> None:
    for name in ("gone", "half"):
        place.server.serve(f"/{name}.mp4", Answer(body=film))
    plan, _ = place.build("execution.try_failed_again=true")
    assert {source.source_id for batch in plan.batches for source in batch.sources} == {*FOR_GOOD, "busy"}
    assert place.asked_for() == {*FOR_GOOD, "busy"}
    states = {name: line["state"] for name, line in place.ledger().items()}
    mended = {"gone", "half", "good"}
    assert states == {name: "kept" if name in mended else "failed" for name in states}
    place.build(OTHER_THRESHOLD)
    assert place.asked_for() == {"busy"}
    assert {name for name, line in place.ledger().items() if line["state"] == "kept"} == {*mended, "busy"}


def test_a_cut_that_failed_for_good_is_not_made_again_until_that_is_wanted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = media.ffmpeg_path()
    (place.folder / "ffmpeg").write_text(
        f'#!/bin/sh\ncase "$*" in *sound.flac*) echo no >&2; exit 1 ;; esac\nexec "{program}" "$@"\n'
    )
    (place.folder / "ffmpeg").chmod(0o755)
    monkeypatch.setattr(media, "ffmpeg_path", lambda: str(place.folder / "ffmpeg"))
    for threshold in ("0.9", "0.8"):
        with pytest.raises(NothingKeptError):
            place.build("cut.quality=20", f"judge.max_black_share={threshold}")
        (clip,) = place.ledger()["good"]["clips"]
        assert (clip["state"], clip["failure"]["stage"], clip["failure"]["code"]) == ("failed", "cut", "ffmpeg_failed")
        if threshold == "0.9":
            written = place.failure_files()
    assert place.failure_files() == written
    assert sum("/cuts/" in name for name in written) == 1
    monkeypatch.setattr(media, "ffmpeg_path", lambda: program)
    place.asked_for()
    place.build("cut.quality=20", "judge.max_black_share=0.8", "execution.try_failed_again=true")
    assert place.asked_for() >= {"good"}
    assert place.ledger()["good"]["state"] == "kept"


def test_a_file_is_hashed_once_when_it_is_fetched_and_again_by_later_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def count(path: Path) -> str:
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr(source_file, "sha256_of", count)
    objects = place.output / "state" / "downloads" / "objects"
    num_stored = len(list(objects.rglob("*.mp4")))
    assert num_stored > 0
    place.build("cut.quality=20")
    assert len(hashed) > 0  # files that an earlier run has fetched
    hashed.clear()
    shutil.rmtree(place.output / "state")
    place.build("cut.quality=21")
    assert len(list(objects.rglob("*.mp4"))) == num_stored
    contents = [line["content_sha256"] for line in place.ledger().values() if line["content_sha256"]]
    assert len(hashed) == len(contents) - len(set(contents)), "only what lay there already is hashed"


def test_a_stored_file_that_was_damaged_is_fetched_again(
    place: Place, film: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    objects = place.output / "state" / "downloads" / "objects"
    (stored,) = (file for file in objects.rglob("*.mp4") if file.read_bytes() == film)
    stored.write_bytes(bytes(len(film)))
    place.asked_for()
    place.build("cut.quality=20")
    assert place.asked_for() >= {"good"}
    assert place.ledger()["good"]["state"] == "kept"
    assert stored.read_bytes() == film
    assert f"{stored} was damaged in the store: it is fetched again" in caplog.text


def test_a_failure_that_cannot_be_read_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures, settings = FetchFailures(Folder(tmp_path)), DownloadSettings()
    failures.keep("key", settings, DownloadError("http_404", "gone"))
    with pytest.raises(DownloadError, match="gone"):
        failures.check("key", settings)
    (kept,) = tmp_path.rglob("*.json")
    for content in (kept.read_bytes()[:20], b"", bytes(80), b"[]", b'{"failed": 3}'):
        kept.write_bytes(content)
        failures.check("key", settings)
        assert f"{kept} is damaged" in caplog.text
        caplog.clear()
