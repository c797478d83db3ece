"""Scenes into clips: pure arithmetic."""

import itertools

import pytest
from pydantic import ValidationError

from pipeline.clips import ClipSettings, split_scenes, windows
from pipeline.scenes import scenes_between
from pipeline.schema import Span

TIMES = [index / 25 for index in range(1000)]


def settings(**changes: object) -> ClipSettings:
    return ClipSettings.model_validate({"length_seconds": 10, "min_seconds": 5, "margin_seconds": 0.2, **changes})


def test_scenes_touch_and_make_up_the_whole() -> None:
    scenes = scenes_between([100, 350, 351], TIMES, 40.0)
    assert scenes == [(0.0, 4.0), (4.0, 14.0), (14.0, 14.04), (14.04, 40.0)]
    assert all(left[1] == right[0] for left, right in itertools.pairwise(scenes))


def test_no_frame_no_scene() -> None:
    assert scenes_between([], [], 0.0) == []


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("keep", [(0, 10), (10, 20), (20, 27)]),
        ("drop", [(0, 10), (10, 20)]),
        ("shift", [(0, 10), (10, 20), (17, 27)]),
    ],
)
def test_what_becomes_of_the_tail(tail: str, expected: list[tuple[float, float]]) -> None:
    assert list(windows(0, 27, settings(tail=tail))) == expected


@pytest.mark.parametrize(("tail", "expected"), [("keep", [(0, 7)]), ("drop", []), ("shift", [(0, 7)])])
def test_a_scene_shorter_than_a_window_is_all_tail(tail: str, expected: list[tuple[float, float]]) -> None:
    assert list(windows(0, 7, settings(tail=tail))) == expected


def test_a_tail_below_the_minimum_is_not_made() -> None:
    assert list(windows(0, 14.9, settings())) == [(0, 10)]
    assert list(windows(0, 15.0, settings())) == [(0, 10), (10, 15)]


def test_a_stride_makes_windows_overlap() -> None:
    assert list(windows(0, 20, settings(stride_seconds=5, tail="drop"))) == [(0, 10), (5, 15), (10, 20)]


def test_margins_are_kept_from_cuts_only() -> None:
    clips = split_scenes([(0.0, 12.0), (12.0, 24.0), (24.0, 36.0)], TIMES, settings())
    assert clips == [(0, Span(0, 10_000)), (1, Span(12_200, 22_200)), (2, Span(24_200, 34_200))]


def test_a_clip_starts_on_a_frame() -> None:
    uneven = [0.0, 0.1, 0.35, 5.0, 9.0, 12.013, 15.0, 19.0, 22.0, 23.9]
    clips = split_scenes([(0.0, 11.9), (11.9, 24.0)], uneven, settings(tail="drop"))
    assert clips == [(0, Span(0, 10_000)), (1, Span(15_000, 24_000))]


def test_clips_never_overlap_and_stay_inside_their_scene() -> None:
    scenes = scenes_between([130, 412, 760], TIMES, 40.0)
    clips = split_scenes(scenes, TIMES, settings(length_seconds=3, min_seconds=1))
    assert len(clips) == 14
    for index, span in clips:
        assert scenes[index][0] <= span.start_seconds < span.end_seconds <= scenes[index][1]
    for (_, left), (_, right) in itertools.pairwise(clips):
        assert left.end_ms <= right.start_ms


def test_a_minimum_above_the_length_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"min_seconds \(12\) is longer than length_seconds \(10\)"):
        settings(min_seconds=12)
