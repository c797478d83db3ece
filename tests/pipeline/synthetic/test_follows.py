"""Painted pictures move as their sound is loud, where ``rhythm`` says so, and evenly where it does not."""

import numpy as np
import pytest

from benchmarks.painted_motion import FPS, RATE_HZ, best_correlation, decibels, loudness, picture_series
from pipeline.synthetic import rhythm
from pipeline.synthetic.pictures import PAINTERS
from pipeline.synthetic.sounds import NATURE_KINDS, nature_sound

MOVE_WITH_SOUND = ("ocean", "rain", "fire", "wind")
STEADY = ("river", "waterfall", "underwater")
SEEDS = (811, 822, 833)
SECONDS = 8.0
NUM_FRAMES = round(SECONDS * FPS)


def painted(kind: str, seed: int):
    """Motion and light of a scene painted small, without grain."""
    painter = PAINTERS[kind](seed, 72, 128, SECONDS)
    return picture_series(painter(number / FPS) for number in range(NUM_FRAMES))


def heard(kind: str, seed: int) -> np.ndarray:
    return loudness(nature_sound(kind, seed, SECONDS, RATE_HZ), NUM_FRAMES)


def test_every_class_is_one_of_these():
    assert sorted((*MOVE_WITH_SOUND, *STEADY, "thunder")) == sorted(NATURE_KINDS)


@pytest.mark.parametrize("kind", MOVE_WITH_SOUND)
def test_motion_follows_the_scene_s_own_sound_and_no_other_scene_s(kind):
    motions = [painted(kind, seed).motion for seed in SEEDS]
    levels = [decibels(heard(kind, seed)) for seed in SEEDS]
    own = [best_correlation(motion, level) for motion, level in zip(motions, levels, strict=True)]
    other = [best_correlation(motion, level) for motion, level in zip(motions, levels[1:] + levels[:1], strict=True)]
    assert np.mean(own) > 0.5
    assert np.mean(own) > np.mean(other) + 0.3


@pytest.mark.parametrize("kind", STEADY)
def test_what_is_steady_does_not_follow(kind):
    matches = [best_correlation(painted(kind, seed).motion, decibels(heard(kind, seed))) for seed in SEEDS]
    assert np.mean(matches) < 0.35


def test_the_sky_lights_up_with_the_thunder():
    pictures = [painted("thunder", seed) for seed in SEEDS]
    matches = [
        best_correlation(picture.light, heard("thunder", seed)) for picture, seed in zip(pictures, SEEDS, strict=True)
    ]
    assert np.mean(matches) > 0.5
    brighter = []
    for picture, seed in zip(pictures, SEEDS, strict=True):
        for strike in rhythm.strikes(seed, SECONDS):
            clap = round(strike.thunder_seconds * FPS)
            if 8 <= clap <= NUM_FRAMES - 5:
                brighter.append(picture.light[clap : clap + 5].mean() - picture.light[clap - 8 : clap - 3].mean())
    assert len(brighter) >= 5
    assert np.mean(brighter) > 4


def test_most_bolts_are_close_and_light_never_comes_after_its_sound():
    bolts = [bolt for seed in range(200) for bolt in rhythm.strikes(seed, 12.0)]
    delays = np.array([bolt.thunder_seconds - bolt.flash_seconds for bolt in bolts])
    assert delays.min() > 0
    is_close = delays < 0.1
    assert 0.75 < is_close.mean() < 0.9
    assert delays[~is_close].min() > 0.29
    assert delays.max() < 1.51
    assert max(bolt.strength for bolt, close in zip(bolts, is_close, strict=True) if not close) < 0.5


def test_what_is_travelled_is_the_integral_of_the_speed():
    travelled = rhythm.Travelled(lambda times: 2 + np.cos(times), 5.0)
    assert [travelled(t) for t in (0.0, 1.0, 4.205)] == pytest.approx(
        [2 * t + np.sin(t) for t in (0.0, 1.0, 4.205)], abs=1e-4
    )
