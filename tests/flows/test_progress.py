from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from flows.progress import Panel, Progress, RunningSource, displayed, duration, line
from pipeline.events import SourceEvent, StageEvent
from pipeline.schema import State


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def begun(num_sources: int, num_ended: int = 0, **more: bool) -> tuple[Progress, Clock]:
    clock = Clock()
    progress = Progress(clock)
    progress.begin(num_sources, num_ended, **more)
    return progress, clock


def end(progress: Progress, source_id: str, state: State = State.KEPT, **clips: int) -> None:
    progress(SourceEvent(source_id, state, clips=clips))


def test_rates_and_remaining_time() -> None:
    progress, clock = begun(10, 2)
    for index in range(4):
        clock.now += 5
        progress(StageEvent("measure", f"s{index}", 1.0, 30.0))
        end(progress, f"s{index}")
    now = progress.snapshot()
    assert (now.num_ended, now.num_sources, now.share) == (6, 10, 0.6)
    assert now.elapsed_seconds == 20
    assert now.media_rate == pytest.approx(4 * 30 / 20)
    assert now.sources_per_minute == pytest.approx(12)
    assert now.remaining_seconds == pytest.approx(4 / (4 / 20))


def test_sources_that_are_done_again_are_not_more_than_there_are() -> None:
    progress, _ = begun(3, 2)
    for name in ("a", "b", "a"):
        end(progress, name)
    assert (progress.snapshot().num_ended, progress.snapshot().share) == (3, 1.0)


def test_rates_follow_the_last_five_minutes() -> None:
    progress, clock = begun(1000)
    for index in range(100):
        end(progress, f"fast{index}")
    clock.now += 1000
    end(progress, "slow")
    assert progress.snapshot().sources_per_minute == pytest.approx(60 / 300)


def test_no_remaining_time_without_anything_to_tell_it_from() -> None:
    progress, clock = begun(10)
    clock.now += 60
    assert progress.snapshot().remaining_seconds is None
    end(progress, "a")
    assert progress.snapshot().remaining_seconds == pytest.approx(9 * 60)
    nothing, _ = begun(3, 3)
    assert nothing.snapshot().remaining_seconds == 0
    assert begun(0)[0].snapshot().share == 1


def test_reused_work_does_not_count_as_speed() -> None:
    progress, clock = begun(3)
    clock.now += 10
    progress(StageEvent("fetch", "old", 0.0, reused=True))
    progress(StageEvent("measure", "old", 0.0, 99.0, reused=True))
    end(progress, "old")
    progress(StageEvent("fetch", "half", 0.0, reused=True))
    progress(StageEvent("measure", "half", 2.0, 20.0))
    end(progress, "half")
    now = progress.snapshot()
    assert now.media_rate == pytest.approx(2.0)
    assert now.sources_per_minute == pytest.approx(6.0)
    assert now.num_ended == 2


def test_clips_are_counted_by_outcome_whatever_the_reason() -> None:
    progress, _ = begun(3)
    end(progress, "a", kept=3, speech=2, failed=1)
    end(progress, "b", State.REJECTED, still=4)
    end(progress, "c", State.FAILED)
    now = progress.snapshot()
    assert now.clips == {"kept": 3, "rejected": 6, "failed": 1}
    assert now.sources == {"kept": 1, "rejected": 1, "failed": 1}


def test_a_source_is_in_the_stage_after_the_one_it_finished() -> None:
    progress, clock = begun(3)
    progress.queue(["a", "b", "c"])
    progress(StageEvent("fetch", "a", 1.0))
    progress(StageEvent("measure", "b", 1.0))
    clock.now += 7
    progress(StageEvent("embed", "c", 1.0))
    assert progress.snapshot().running == (
        RunningSource("a", "measure", 7),
        RunningSource("b", "embed", 7),
        RunningSource("c", "cut", 0),
    )
    end(progress, "b")
    assert [source.source_id for source in progress.snapshot().running] == ["a", "c"]


def test_without_encoders_the_cut_follows_the_measures() -> None:
    progress, _ = begun(1, embeds=False)
    progress(StageEvent("measure", "a", 1.0))
    assert progress.snapshot().running == (RunningSource("a", "cut", 0),)


def test_steps_of_the_whole_dataset_are_told() -> None:
    progress, clock = begun(1)
    end(progress, "a", kept=2)
    clock.now += 65
    progress(StageEvent("shard", "train-00001", 3.0))
    assert line(progress.snapshot()) == (
        "1/1 sources (100%), 0:01:05 elapsed, shard: train-00001; "
        "sources of this run: kept 1, rejected 0, failed 0; their clips: kept 2, rejected 0, failed 0"
    )


def test_events_may_come_from_many_threads() -> None:
    progress, _ = begun(800)
    threads = [
        threading.Thread(target=lambda n=n: [end(progress, f"{n}-{i}", kept=2) for i in range(100)]) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = progress.snapshot()
    assert (now.num_ended, now.clips["kept"]) == (800, 1600)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (360000, "100:00:00"), (None, "-:--")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("width", [80, 160])
def test_the_panel_fits_the_terminal(width: int) -> None:
    progress, clock = begun(40)
    progress.queue([f"queued-{i}" for i in range(5)])
    for index in range(9):
        progress(StageEvent("fetch", f"source-{index}-{'long-' * 20}", 1.0))
    clock.now += 10
    end(progress, "x", kept=3, speech=1)
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(Panel(progress, "demo"))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("demo ━")
    assert lines[0].endswith("1/40 sources")
    assert [text.split()[0] for text in lines[1:5]] == ["time", "rate", "sources", "clips"]
    assert lines[1].rstrip() == "time     0:00:10 elapsed, 0:06:30 left"
    assert lines[4].split() == ["clips", "kept", "3", "rejected", "1", "failed", "0"]
    assert sum("measure 0:00:10  source-" in text for text in lines) == 6
    assert lines[-1].strip() == "and 3 more, 5 queued or being fetched"


def test_without_a_terminal_a_line_is_printed_when_something_changed() -> None:
    progress, _ = begun(2)
    out = io.StringIO()
    with displayed(progress, "demo", Console(file=out, width=80), every_seconds=0.05):
        end(progress, "a", kept=1)
        threading.Event().wait(0.4)
        end(progress, "b", kept=1)
    lines = out.getvalue().splitlines()
    assert [text.split(" sources")[0] for text in lines] == ["demo: 1/2", "demo: 2/2"]
