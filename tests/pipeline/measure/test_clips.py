"""Scenes into clips: pure arithmetic."""

import itertools

import pytest
from pydantic import ValidationError

from pipeline.measure.clips import ClipSettings, split_scenes, windows
from pipeline.measure.scenes import scenes_between
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


def shared(clips: list[tuple[int, Span]], times: list[float]) -> list[tuple[float, int]]:
    """What neighbouring clips have in common: milliseconds, and frames."""
    spans = [span for _, span in clips]
    frames = [{t for t in times if span.start_ms <= t * 1000 + 0.5 < span.end_ms} for span in spans]
    pairs = itertools.pairwise(zip(spans, frames, strict=True))
    return [(max(a.end_ms - b.start_ms, 0), len(seen & seen_next)) for (a, seen), (b, seen_next) in pairs]


def test_a_gap_between_frames_moves_the_clips_behind_it() -> None:
    """No frame from 1.67 to 2.53 s: the clip that would begin at 2 s begins and ends 0.53 s later, and so do those behind it."""
    times = [number / 30 for number in range(300) if not 50 < number < 76]
    clips = split_scenes([(0.0, 10.0)], times, settings(length_seconds=2, min_seconds=1))
    assert [span for _, span in clips] == [
        Span(0, 2000),
        *(Span(2533 + n * 2000, 4533 + n * 2000) for n in range(3)),
        Span(8533, 10_000),
    ]
    assert shared(clips, times) == [(0, 0)] * 4


@pytest.mark.parametrize("rate", [30_000 / 1001, 24_000 / 1001, 60_000 / 1001, 25.0, 12.5, 29.83])
def test_clips_share_no_frame_and_no_sound_at_any_rate(rate: float) -> None:
    times = [number / rate for number in range(round(rate * 123))]
    clips = split_scenes([(0.0, 123.0)], times, settings(tail="drop"))
    assert len(clips) == 12
    assert shared(clips, times) == [(0, 0)] * 11
    assert {span.duration_ms for _, span in clips} == {10_000}
    for _, span in clips:
        assert min(abs(span.start_ms - time * 1000) for time in times) <= 0.5


def test_a_stride_says_how_much_clips_share() -> None:
    times = [number / 30 for number in range(900) if not 50 < number < 76]
    clips = split_scenes(
        [(0.0, 30.0)], times, settings(length_seconds=2, min_seconds=1, stride_seconds=1.5, tail="drop")
    )
    assert max(shared_ms for shared_ms, _ in shared(clips, times)) == 500
    apart = split_scenes(
        [(0.0, 30.0)], times, settings(length_seconds=2, min_seconds=1, stride_seconds=2.1, tail="drop")
    )
    assert shared(apart, times) == [(0, 0)] * 13


def test_a_shifted_tail_ends_with_the_scene_wherever_the_others_went() -> None:
    times = [number / 30 for number in range(300) if not 50 < number < 76]
    clips = split_scenes([(0.0, 9.0)], times, settings(length_seconds=2, min_seconds=1, tail="shift"))
    assert [span for _, span in clips][-2:] == [Span(6533, 8533), Span(7000, 9000)]
