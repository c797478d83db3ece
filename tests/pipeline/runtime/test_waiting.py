"""What sources wait for each other is no work; and what takes too long again and again is not tried for ever."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import source_results
from pipeline.build.build import Build
from pipeline.build.recipe import BuildRecipe
from pipeline.build.timeouts import Timeouts
from pipeline.errors import ClipError, TransientError, WorkerError
from pipeline.events import Event, StageEvent
from pipeline.fetch.hosts import HostGate
from pipeline.measure.video import MeasuredVideo, measure_video
from pipeline.report.outcomes import read_timings
from pipeline.runtime.folder import Folder
from pipeline.runtime.waiting import counted_lock, counting
from pipeline.synthetic.video import write_video
from tests.faults.media_build import recipe_for, run_build
from tests.faulty_server import Answer, Fault, FaultyServer
from tests.footage import FPS, noise, shots
from tests.needs import needs_proc

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four files that give a clip each."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(4):
        frames = list(shots([0.4] * number + [2.4], size=(160, 96)))[round(0.4 * number * FPS) :]
        write_video(folder / f"{number}.mp4", frames, noise(2.4, seed=number), fps=FPS)
    return sorted(folder.iterdir())


def test_only_what_is_waited_is_counted_and_in_every_count_that_is_open() -> None:
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(0.3, lock.release).start()
    with counting() as outer, counting() as inner, counted_lock(lock):
        time.sleep(0.2)
    assert outer == inner
    assert 0.2 < inner.seconds < 0.45
    gate = HostGate(spacing_seconds=0.3)
    with counting() as waited:
        for _ in range(2):
            with gate.visit("http://a/1"):
                time.sleep(0.1)
    assert 0.1 < waited.seconds < 0.3


def test_stages_that_share_a_core_take_no_more_time_than_there_was(videos: list[Path], tmp_path: Path) -> None:
    """All four sources wait for the one slot; before, each of them counted the work of the others as its own."""
    recipe = recipe_for(videos, tmp_path, ["execution.workers=1"])
    events: list[Event] = []
    build = Build(recipe)
    try:
        build.check()
        (batch,) = build.plan().batches
        started = time.monotonic()
        build.run_batch(batch, events.append)
        elapsed_seconds = time.monotonic() - started
        build.finish(events.append)
    finally:
        build.close()
    lines = [json.loads(line) for line in (tmp_path / "hostile" / "timings.jsonl").read_text().splitlines()]
    worked = sum(line["measure"] + line["cut"] for line in lines)
    assert worked < elapsed_seconds
    stages = [event for event in events if isinstance(event, StageEvent) and event.stage in ("measure", "cut")]
    assert sum(event.elapsed_seconds for event in stages) == pytest.approx(worked, abs=0.01)
    waited = sum(line.get("waited", 0.0) for line in lines)
    assert waited > worked / 2  # the last of four waits for three
    timings = read_timings(Folder(tmp_path / "hostile"))
    assert timings["waited_seconds"] == pytest.approx(waited, abs=0.01)
    assert {stage["stage"] for stage in timings["stages"]} == {"fetch", "measure", "cut"}


def take_too_long(*_: Any, **__: Any) -> MeasuredVideo:
    raise WorkerError("timed_out", "took longer than 60 s and was ended")


def failure(recipe: BuildRecipe) -> tuple[str, bool]:
    run_build(recipe)
    (entry,) = map(json.loads, Path(recipe.output, "ledger.jsonl").read_text().splitlines())
    return (entry["failure"]["code"], entry["failure"]["transient"]) if entry["failure"] else (entry["state"], False)


def measure_or_stand_still(path: Path, *args: Any, **kwargs: Any) -> MeasuredVideo:
    """As a process that somebody suspends with SIGSTOP."""
    if path.name == "1.mp4":
        os.kill(os.getpid(), signal.SIGSTOP)
    return measure_video(path, *args, **kwargs)


def test_a_suspended_process_costs_its_source_and_the_build_goes_on(
    videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(videos, tmp_path, ["measure.timeout_seconds=20.0", "measure.timeout_max_seconds=20.0"])
    monkeypatch.setattr(source_results, "measure_video", measure_or_stand_still)
    run_build(recipe)
    entries = map(json.loads, (tmp_path / "hostile" / "ledger.jsonl").read_text().splitlines())
    ends = {entry["source_id"]: (entry["failure"] or {}).get("code") or entry["state"] for entry in entries}
    assert ends == {"s00000": "kept", "s00001": "timed_out", "s00002": "kept", "s00003": "kept"}
    assert list((tmp_path / "hostile" / "state" / "tmp").iterdir()) == []
    monkeypatch.setattr(source_results, "measure_video", measure_video)
    run_build(recipe)
    assert '"failed"' not in (tmp_path / "hostile" / "ledger.jsonl").read_text()


def test_the_third_time_out_under_one_limit_is_final(
    videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(videos[:1], tmp_path)
    as_it_is = source_results.measure_video
    monkeypatch.setattr(source_results, "measure_video", take_too_long)
    assert [failure(recipe) for _ in range(3)] == [("timed_out", True)] * 2 + [("timed_out", False)]
    build = Build(recipe)
    assert build.plan().batches == ()
    build.close()
    monkeypatch.setattr(source_results, "measure_video", as_it_is)
    assert failure(recipe_for(videos[:1], tmp_path, ["measure.timeout_seconds=120.0"])) == ("kept", False)
    assert failure(recipe_for(videos[:1], tmp_path, ["execution.try_failed_again=true"])) == ("kept", False)


def take_too_much(*_: Any, **__: Any) -> MeasuredVideo:
    return take_too_much_of(bytearray(1 << 30))


def take_too_much_of(memory: bytearray) -> MeasuredVideo:
    memory[::4096] = b"1" * len(memory[::4096])
    time.sleep(60)
    raise AssertionError("it was not ended")


@needs_proc
def test_the_third_time_that_a_source_takes_too_much_memory_is_final(
    videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(videos[:1], tmp_path, ["execution.process_memory_bytes=900000000"])
    as_it_is = source_results.measure_video
    monkeypatch.setattr(source_results, "measure_video", take_too_much)
    assert [failure(recipe) for _ in range(3)] == [("out_of_memory", True)] * 2 + [("out_of_memory", False)]
    (entry,) = map(json.loads, Path(recipe.output, "ledger.jsonl").read_text().splitlines())
    said = "took more memory than 900000000 bytes in each of 3 runs: raise execution.process_memory_bytes"
    assert entry["failure"]["message"].startswith(said)
    build = Build(recipe)
    assert build.plan().batches == ()
    build.close()
    monkeypatch.setattr(source_results, "measure_video", as_it_is)
    more = ["execution.process_memory_bytes=4000000000", "execution.try_failed_again=true"]
    assert failure(recipe_for(videos[:1], tmp_path, more)) == ("kept", False)


def test_memory_is_counted_by_limit_and_apart_from_time(tmp_path: Path) -> None:
    def ends(code: str, memory_bytes: int | None) -> type[Exception]:
        timeouts = Timeouts(Folder(tmp_path), memory_bytes=memory_bytes)
        with pytest.raises(ClipError) as caught, timeouts.counted("a", 60.0, "raise it"):
            raise WorkerError(code, "ended")
        return caught.type

    assert [ends("out_of_memory", 1000) for _ in range(2)] == [WorkerError] * 2
    assert [ends("timed_out", 1000), ends("out_of_memory", None), ends("out_of_memory", 2000)] == [WorkerError] * 3
    assert [ends("out_of_memory", 1000), ends("timed_out", 1000)] == [ClipError] * 2  # the second is not tried any more
    assert ends("timed_out", 2000) is WorkerError


def test_a_count_of_time_outs_says_whose_it_is_and_where_it_belongs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def late(key: str) -> type[Exception]:
        timeouts = Timeouts(Folder(tmp_path), source_id="rain 7")
        with pytest.raises(ClipError) as caught, timeouts.counted(key, 60.0, "raise it"):
            raise WorkerError("timed_out", "ended")
        return caught.type

    assert [late("a") for _ in range(3)] == [WorkerError, WorkerError, ClipError]
    (of_a,) = tmp_path.rglob("*.json")
    assert json.loads(of_a.read_text()) == {
        "times": 3, "source_id": "rain 7", "kept_as": str(of_a.relative_to(tmp_path)),
    }  # fmt: skip
    late("b")
    (of_b,) = set(tmp_path.rglob("*.json")) - {of_a}
    of_b.write_bytes(of_a.read_bytes())
    assert late("b") is WorkerError
    assert (
        f"{of_b.relative_to(tmp_path)} is damaged (it is {of_a.relative_to(tmp_path)}, put into the place"
        in caplog.text
    )
    of_a.write_bytes(b"{")
    assert late("a") is WorkerError
    assert f"{of_a.relative_to(tmp_path)} is damaged" in caplog.text


def test_a_download_that_never_ends_in_its_time_is_given_up(
    videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    changes = ["download.timeout_seconds=1.0", "download.min_bytes_per_second=0.0", "download.retries=0"]
    recipe = recipe_for(videos[:1], tmp_path, changes)
    with FaultyServer() as server:
        slow = Answer(body=videos[0].read_bytes(), fault=Fault.DRIP, fault_after=3000)
        (tmp_path / "list.jsonl").write_text(json.dumps({"id": "s00000", "url": server.serve("/a.mp4", slow)}) + "\n")
        assert [failure(recipe) for _ in range(3)] == [("timed_out", True)] * 2 + [("timed_out", False)]
        num_hits = server.hits()
        assert failure(recipe) == ("timed_out", False)
        assert server.hits() == num_hits


def test_time_outs_are_counted_by_limit_and_forgotten_by_success(tmp_path: Path) -> None:
    timeouts = Timeouts(Folder(tmp_path))

    def late(limit_seconds: float = 60.0) -> type[Exception]:
        with (
            pytest.raises(ClipError, match="took longer than 60 s") as caught,
            timeouts.counted("a", limit_seconds, "raise it"),
        ):
            raise WorkerError("timed_out", "took longer than 60 s")
        return caught.type

    assert [late(), late()] == [WorkerError] * 2
    with timeouts.counted("a", 60.0, "raise it"):
        pass
    assert [late(), late(), late(90.0), late()] == [WorkerError] * 3 + [ClipError]
    with (
        pytest.raises(ClipError, match="in each of 3 runs: raise it") as caught,
        timeouts.counted("a", 60.0, "raise it"),
    ):
        raise AssertionError("not tried")
    assert not isinstance(caught.value, TransientError)
    with Timeouts(Folder(tmp_path), try_again=True).counted("a", 60.0, "raise it"):
        pass
    (count,) = (path for path in tmp_path.rglob("*.json") if '"times":3' in path.read_text())
    count.write_bytes(b"\0" * 5)
    assert late() is WorkerError
