"""Agreement in time of events whose lag is known by construction, on the numbers alone and through a whole decode."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.measure.clips import ClipSettings
from pipeline.measure.rhythm import FLOOR_DB, MAX_LAG_STEPS, STEP_SECONDS, envelope_db, on_grid, rhythm_match
from pipeline.measure.scenes import SceneSettings
from pipeline.measure.video import MeasuredClip, MeasureSettings, measure_video
from pipeline.media.ffmpeg import probe
from pipeline.schema import TimeMeasures
from pipeline.synthetic.video import write_video
from tests.footage import FPS, SOUND_HZ, noise, shots

FLASHES = (1.2, 2.9, 4.1, 6.6, 8.3)
NOT_TOGETHER = (0.3, 2.2, 5.4, 7.5, 9.2)


def pulses(
    seconds: tuple[float, ...], length: float = 10.0, steps: int = 3, low: float = 20.0
) -> npt.NDArray[np.float64]:
    values = np.full(round(length / STEP_SECONDS), low)
    for at in seconds:
        values[round(at / STEP_SECONDS) : round(at / STEP_SECONDS) + steps] += 60
    return values


def later(seconds: float) -> tuple[float, ...]:
    return tuple(at + seconds for at in FLASHES)


@pytest.mark.parametrize("lag", [-1.0, -0.3, 0.0, 0.1, 0.6, 1.0])
def test_the_lag_of_equal_events_is_found_exactly(lag: float) -> None:
    assert rhythm_match(pulses(FLASHES), pulses(later(lag)), 0.5) == (1.0, lag)


def test_only_rises_count() -> None:
    """Light goes out at once, sound dies away: what falls is not compared."""
    dying = pulses(later(0.2))
    for at in later(0.2):
        start = round(at / STEP_SECONDS)
        dying[start : start + 12] = np.linspace(80, 20, 12)
    match, lag = rhythm_match(pulses(FLASHES), dying, 0.5)
    assert lag == 0.2
    assert match == pytest.approx(1.0, abs=0.02)


def test_the_scale_does_not_matter() -> None:
    picture, sound = pulses(FLASHES), pulses(later(0.4))
    assert rhythm_match(picture * 0.1 + 7, sound - 90, 0.5) == rhythm_match(picture, sound, 0.5) == (1.0, 0.4)


def test_events_that_are_not_together_match_little() -> None:
    match, _ = rhythm_match(pulses(FLASHES), pulses((0.3, 5.4, 9.6)), 0.5)
    assert match is not None
    assert match < 0.45


def test_of_equal_matches_the_smallest_lag_counts() -> None:
    every_third = tuple(np.arange(0.5, 9.5, 0.3))
    assert rhythm_match(pulses(every_third, steps=1), pulses(every_third, steps=1), 0.5) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("picture", "sound"),
    [
        (np.full(100, 90.0), pulses(FLASHES)),
        (pulses(FLASHES), np.full(100, FLOOR_DB)),
        (90 + 0.2 * np.sin(np.arange(100.0)), pulses(FLASHES)),
        (pulses(FLASHES), -20 + 0.5 * np.sin(np.arange(100.0))),
        (np.linspace(200, 0, 100), pulses(FLASHES)),
        (pulses(FLASHES)[:29], pulses(FLASHES)[:29]),
        (np.zeros(0), np.zeros(0)),
    ],
)
def test_where_nothing_rises_there_is_no_match(
    picture: npt.NDArray[np.float64], sound: npt.NDArray[np.float64]
) -> None:
    assert rhythm_match(picture, sound, 0.5) == (None, None)


def test_noise_matches_noise_no_better_than_the_docstring_says() -> None:
    rng = np.random.default_rng(0)
    found = [rhythm_match(*(5 * rng.standard_normal((2, 100))), 0.5)[0] or 0.0 for _ in range(200)]
    assert float(np.median(found)) == pytest.approx(0.22, abs=0.03)
    assert float(np.quantile(found, 0.95)) < 0.4


def test_the_grid_takes_means_and_fills_gaps() -> None:
    seconds = np.array([10.0, 10.05, 10.1, 10.32, 10.45])
    values = np.array([np.nan, 4.0, 5.0, 8.0, 9.0])
    assert on_grid(seconds, values, 10.0, 10.6).tolist() == [4.0, 5.0, 5.0, 8.0, 9.0, 9.0]
    assert on_grid(seconds, values, 10.1, 10.4).tolist() == [5.0, 5.0, 8.0]
    assert on_grid(seconds, np.full(5, np.nan), 10.0, 10.3).tolist() == [0.0, 0.0, 0.0]


def test_the_envelope_is_the_level_of_every_tenth_of_a_second() -> None:
    rate = 1000
    mono = np.concatenate([np.full(100, 1.0), np.full(100, -0.1), np.zeros(100), np.full(50, 1.0)]).astype(np.float32)
    assert envelope_db(mono, rate) == pytest.approx([0.0, -20.0, FLOOR_DB], abs=1e-4)
    assert envelope_db(mono[:20], rate).size == 0


def flashing(seconds: float, at: tuple[float, ...]) -> Iterator[npt.NDArray[np.uint8]]:
    """Each flash is one frame's full brightness and dies away within a third of a second, as lightning does."""
    for index, frame in enumerate(shots([seconds])):
        since = min((index / FPS - flash for flash in at if index / FPS >= flash), default=9.0)
        light = 90 * max(1 - since / 0.35, 0.0)
        yield (frame * 0.5 + light).clip(0, 255).astype(np.uint8)


def bursts(seconds: float, at: tuple[float, ...]) -> npt.NDArray[np.float32]:
    sound = noise(seconds, level=0.003)
    for burst in at:
        start = round(burst * SOUND_HZ)
        decay = np.exp(-np.arange(round(0.5 * SOUND_HZ)) / (0.15 * SOUND_HZ))[: len(sound) - start, None]
        sound[start : start + len(decay)] += noise(1.0, seed=9, level=0.2)[: len(decay)] * decay
    return sound.astype(np.float32)


def measured(tmp_path: Path, flashes: tuple[float, ...], heard: tuple[float, ...] | None) -> MeasuredClip:
    path = tmp_path / "a.mp4"
    sound = None if heard is None else bursts(10.0, heard)
    write_video(path, flashing(10.0, flashes), sound, fps=FPS)
    video = measure_video(
        path, probe(path), section_ms=(0, None), scenes=SceneSettings(),
        clips=ClipSettings(min_seconds=4.0), settings=MeasureSettings(),
        frames_out=path.with_suffix(".npz"), sound_out=path.with_suffix(".flac"),
    )  # fmt: skip
    (clip,) = video.clips
    return clip


@pytest.mark.slow
@pytest.mark.parametrize("lag", [0.0, 0.5, 0.9])
def test_lightning_with_thunder_is_found_in_a_decode(tmp_path: Path, lag: float) -> None:
    found = measured(tmp_path, FLASHES, later(lag)).in_time
    assert found is not None
    assert found.light_lag_seconds == pytest.approx(lag, abs=STEP_SECONDS + 1e-9)
    assert found.motion_lag_seconds == pytest.approx(lag, abs=STEP_SECONDS + 1e-9)
    assert found.light_match is not None and found.light_match > 0.85
    assert found.motion_match is not None and found.motion_match > 0.75


@pytest.mark.slow
def test_bursts_at_other_times_match_less_in_a_decode(tmp_path: Path) -> None:
    found = measured(tmp_path, FLASHES[:3], (8.0, 5.7)).in_time
    assert found is not None and found.light_match is not None
    assert found.light_match < 0.3


@pytest.mark.slow
def test_steady_sound_and_no_sound_have_no_match(tmp_path: Path) -> None:
    assert measured(tmp_path, FLASHES, ()).in_time == TimeMeasures()
    assert measured(tmp_path, FLASHES, None).in_time is None


def test_the_range_is_a_second() -> None:
    assert round(MAX_LAG_STEPS * STEP_SECONDS, 6) == 1.0
    _, lag = rhythm_match(pulses(FLASHES), pulses(later(1.4)), 0.5)
    assert lag is not None
    assert abs(lag) <= 1.0
