"""What a fit shows and writes down."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from trainer.engine.stats import Display, Stats, Tick, fitted_seconds

TICK = Tick(
    stage="align", samples_seen=1500, num_samples=6000, samples_per_second=81.25, data_wait_share=0.034,
    memory_bytes=1_820_000_000, loss=2.31456, remaining_seconds=3725.0,
)  # fmt: skip
LINE = (
    "align: 1,500/6,000 samples (25%), 81.2 samples/s, waiting for data 3%, 1.82 GB, loss 2.3146, 1:02:05 left"
)  # fmt: skip


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_tick_is_one_line(is_terminal: bool) -> None:
    written = io.StringIO()
    display = Display(Console(file=written, force_terminal=is_terminal, width=140))
    with display.shown():
        display.tick(TICK)
        display.say("align: validation")
    told = written.getvalue()
    assert LINE in told and "align: validation" in told
    if not is_terminal:
        assert told == f"{LINE}\nalign: validation\n"


def test_other_ranks_show_and_write_nothing(tmp_path: Path) -> None:
    display = Display(None)
    with display.shown():
        display.tick(TICK)
        display.say("x")
    stats = Stats(None)
    stats.resume("align", 0)
    stats.write("align", "tick", 1, {"loss": 1.0})
    stats.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finite_is_null_and_other_stages_stay(tmp_path: Path) -> None:
    stats = Stats(tmp_path)
    stats.resume("align", 0)
    stats.write("align", "tick", 10, {"loss": float("nan"), "scale": 3.0})
    stats.write("align", "tick", 20, {"loss": 1.0})
    stats.write("video", "tick", 30, {"loss": 2.0})
    stats.resume("align", 10)
    stats.close()
    read = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["samples_seen"], line["loss"]) for line in read] == [
        ("align", 10, None),
        ("video", 30, 2.0),
    ]
    assert read[0]["scale"] == 3.0


def test_the_time_of_a_fit_is_that_of_its_ticks(tmp_path: Path) -> None:
    assert fitted_seconds(tmp_path) is None
    stats = Stats(tmp_path)
    for stage, samples_seen, rate in (("align", 10, 5.0), ("align", 30, 10.0), ("video", 30, 1.0)):
        stats.write(stage, "tick", samples_seen, {"samples_per_second": rate})
    stats.write("video", "validation", 30, {"right_minus_wrong": 0.5})
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"stage": "video", "ki')  # killed while it wrote
    assert fitted_seconds(tmp_path) == 10 / 5 + 20 / 10 + 30 / 1
