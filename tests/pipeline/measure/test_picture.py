"""Picture measures of footage whose truth is known."""

import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.measure.picture import PictureSettings, PictureTrack, find_bars
from pipeline.media.decoding import Decoding, Picture
from pipeline.schema import Bars, PictureMeasures
from pipeline.synthetic.video import write_video
from tests.footage import FPS, shots

Frame = npt.NDArray[np.uint8]
SIZE = (640, 360)


def measured(tmp_path: Path, frames: Iterable[Frame], seconds: float = 2.0) -> PictureMeasures:
    path = tmp_path / "a.mp4"
    write_video(path, frames, None, fps=FPS, crf=10)
    track = PictureTrack(SIZE, PictureSettings())
    for piece in Decoding(path, sample_rate_hz=44_100):
        if isinstance(piece, Picture):
            track.feed(piece, piece.small_luma(track.size))
    found = track.measures(0.0, seconds)
    assert found is not None
    return found


def view(seconds: float = 2.0) -> list[Frame]:
    return list(shots([seconds], size=SIZE))


def level(value: int, seconds: float = 2.0) -> list[Frame]:
    return [np.full((SIZE[1], SIZE[0], 3), value, np.uint8)] * round(seconds * FPS)


def test_black_and_white(tmp_path: Path) -> None:
    assert measured(tmp_path, level(0)).black_share == 1.0
    assert measured(tmp_path, level(255)).white_share == 1.0
    half = measured(tmp_path, [*level(0, 1.0), *view(1.0)])
    assert half.black_share == pytest.approx(0.5, abs=0.021)
    assert half.white_share == 0.0


def test_a_photograph_stands_still(tmp_path: Path) -> None:
    assert measured(tmp_path, [view()[0]] * 50).still_share == 1.0


@pytest.mark.slow
def test_grain_alone_is_not_still(tmp_path: Path) -> None:
    assert measured(tmp_path, view()).still_share == 0.0


@pytest.mark.slow
def test_doubled_frames_are_not_still(tmp_path: Path) -> None:
    frames = view(4.0)
    assert measured(tmp_path, [frames[index // 4 * 4] for index in range(100)], 4.0).still_share == 0.0


def test_motion_is_the_change_in_a_fifth_of_a_second(tmp_path: Path) -> None:
    brightening = [np.full((SIZE[1], SIZE[0], 3), 40 + 2 * index, np.uint8) for index in range(50)]
    assert measured(tmp_path, brightening).motion == pytest.approx(10.0, abs=0.6)


def test_sharpness_falls_with_blur_and_not_with_contrast(tmp_path: Path) -> None:
    blocks = cv2.resize(
        np.random.default_rng(3).integers(40, 200, (9, 16, 3)).astype(np.uint8), SIZE, interpolation=cv2.INTER_NEAREST
    )
    grass = np.random.default_rng(4).integers(-30, 31, (SIZE[1], SIZE[0], 1))
    sharp = (blocks + grass).clip(0, 255).astype(np.uint8)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 20)
    dim = (sharp // 4 + 20).astype(np.uint8)
    of_sharp, of_blurred, of_dim = (
        measured(tmp_path, [np.asarray(frame, np.uint8)] * 50).sharpness for frame in (sharp, blurred, dim)
    )
    assert of_blurred < of_sharp / 20
    assert of_dim == pytest.approx(of_sharp, rel=0.25)
    assert of_blurred < 0.0003 < of_sharp  # where the rule draws the line


@pytest.mark.parametrize("bars", [Bars(0, 45, 0, 45), Bars(80, 0, 80, 0), Bars(64, 36, 64, 36), Bars(0, 40, 0, 44)])
def test_bars_are_found_to_a_pixel(tmp_path: Path, bars: Bars) -> None:
    frames = view(1.0)
    for frame in frames:
        frame[: bars.top], frame[SIZE[1] - bars.bottom :] = 0, 0
        frame[:, : bars.left], frame[:, SIZE[0] - bars.right :] = 0, 0
    found = measured(tmp_path, frames, 1.0).bars
    assert [found.left, found.top, found.right, found.bottom] == pytest.approx(
        [bars.left, bars.top, bars.right, bars.bottom], abs=1
    )


def test_darkness_is_no_bar() -> None:
    fading = np.concatenate([np.arange(0, 120), np.arange(120, 0, -1)]).astype(np.uint8)
    lit_ground = np.concatenate([np.zeros(100), np.full(140, 90)]).astype(np.uint8)
    for rows in (fading, lit_ground):
        assert not find_bars([rows], [np.full(320, 90, np.uint8)], 10.0)


def test_a_bar_that_lights_up_once_is_none() -> None:
    rows = np.concatenate([np.zeros(40), np.full(160, 120), np.zeros(40)]).astype(np.uint8)
    columns = np.full(320, 90, np.uint8)
    assert find_bars([rows, rows], [columns, columns], 10.0) == Bars(0, 40, 0, 40)
    assert not find_bars([rows, np.full(240, 200, np.uint8)], [columns, columns], 10.0)


def test_a_span_without_frames_has_no_measures(tmp_path: Path) -> None:
    track = PictureTrack(SIZE, PictureSettings())
    assert track.measures(0.0, 1.0) is None


def test_a_clip_of_a_long_video_costs_no_more_than_one_of_a_short_video() -> None:
    """Half an hour at 30 fps: 432 kB a series. Only what lies in the clip is looked at."""
    small = np.zeros((9, 16), np.uint8)
    track = PictureTrack((16, 9), PictureSettings(sample_seconds=60.0))
    frame = av.VideoFrame(16, 16, "yuv420p")
    for number in range(1800 * 30):
        track.feed(Picture(frame, number / 30), small)
    tracemalloc.start()
    try:
        found = track.measures(900.0, 910.0)
        track.rhythm(900.0, 910.0)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found is not None
    assert found.num_frames == 300
    assert peak_bytes < 100_000
