"""Sound measures against numbers worked out by hand, and against sounds whose nature is known."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.measure.sound import (
    SAMPLE_RATE_HZ,
    Samples,
    SoundTrack,
    clipped_share,
    dual_mono,
    loudness,
    measure_sound,
    music_share,
    silent_share,
    to_mono,
)
from pipeline.media.decoding import SoundBlock
from tests.footage import noise, tone


def pcm(sound: np.ndarray) -> Samples:
    return np.asarray((sound * 32767).round().clip(-32768, 32767), np.int16)


@pytest.fixture
def track(tmp_path: Path) -> Iterator[SoundTrack]:
    opened = SoundTrack(tmp_path)
    yield opened
    opened.close()


def at_44100(seconds: float, hz: float = 997.0, level: float = 0.5) -> np.ndarray:
    return tone(seconds, hz, level, SAMPLE_RATE_HZ)


def test_loudness_of_a_full_scale_sine_is_minus_3_01() -> None:
    """ITU-R BS.1770-4: a 997 Hz sine at 0 dBFS in one channel reads -3.01 LKFS; in both, 3.01 dB more."""
    sine = at_44100(5.0, level=0.999969)
    assert loudness(pcm(sine)) == pytest.approx(-3.01, abs=0.05)
    assert loudness(pcm(np.hstack([sine, sine]))) == pytest.approx(0.0, abs=0.05)
    assert loudness(pcm(sine * 0.1)) == pytest.approx(-23.01, abs=0.05)


def test_loudness_is_none_where_it_is_not_defined() -> None:
    assert loudness(pcm(at_44100(0.3))) is None
    assert loudness(np.zeros((88_200, 1), np.int16)) is None


def test_silence_is_counted_in_blocks() -> None:
    quiet, loud = np.zeros(SAMPLE_RATE_HZ * 3, np.float32), noise(1.0)[:SAMPLE_RATE_HZ, 0]
    assert silent_share(np.concatenate([quiet, loud])) == 0.75
    assert silent_share(np.full(SAMPLE_RATE_HZ, 0.0011, np.float32)) == 0.0
    assert silent_share(np.full(SAMPLE_RATE_HZ, 0.0009, np.float32)) == 1.0


def test_clipping_counts_runs_at_full_scale() -> None:
    samples = np.zeros((1000, 2), np.int16)
    samples[100:102, 0] = 32767  # two are no run
    assert clipped_share(samples) == 0.0
    samples[200:210, 0], samples[300:305, 1] = 32767, -32768
    assert clipped_share(samples) == 0.01


def test_dual_mono() -> None:
    one, other = noise(1.0, seed=1), noise(1.0, seed=2)
    assert dual_mono(pcm(one)) is None
    assert dual_mono(pcm(np.hstack([one, one]))) is True
    assert dual_mono(pcm(np.hstack([one, other]))) is False


def test_chords_are_music_and_noise_is_not() -> None:
    chord = sum((tone(6.0, hz, 0.1, 16_000)[:, 0] for hz in (220, 277.2, 329.6, 440, 554.4, 659.3)), np.zeros(96_000))
    hiss = np.random.default_rng(0).standard_normal(96_000) * 0.05
    assert music_share((chord + hiss * 0.05).astype(np.float32), 16_000) > 0.9
    assert music_share(hiss.astype(np.float32), 16_000) < 0.01
    assert music_share((tone(6.0, 1800, 0.1, 16_000)[:, 0] + hiss).astype(np.float32), 16_000) < 0.05


def test_an_offset_is_measured(track: SoundTrack) -> None:
    track.feed(SoundBlock(0.0, pcm(noise(2.0) * 0.3 + 0.1)))
    assert measure_sound(track, 0.0, 1.5).dc_offset == pytest.approx(0.1, abs=0.002)


def test_gaps_are_silence_that_is_not_covered(track: SoundTrack) -> None:
    second = pcm(np.full((SAMPLE_RATE_HZ, 1), 0.5))
    track.feed(SoundBlock(0.0, second))
    track.feed(SoundBlock(3.0, second))
    assert track.covered(0.0, 4.0) == pytest.approx(0.5)
    assert track.covered(0.5, 1.5) == pytest.approx(0.5)
    assert track.covered(3.5, 5.5) == pytest.approx(0.25)
    values = track.between(0.5, 3.5)[:, 0]
    assert values[: SAMPLE_RATE_HZ // 2].all()
    assert not values[SAMPLE_RATE_HZ // 2 : SAMPLE_RATE_HZ * 5 // 2].any()
    assert values[SAMPLE_RATE_HZ * 5 // 2 :].all()
    assert track.between(3.5, 6.0).shape == (round(2.5 * SAMPLE_RATE_HZ), 1)


def test_sound_before_time_zero_is_left_out(track: SoundTrack) -> None:
    ramp = np.arange(2000, dtype=np.int16)[:, None]
    track.feed(SoundBlock(-1000 / SAMPLE_RATE_HZ, ramp))
    assert track.between(0.0, 10 / SAMPLE_RATE_HZ)[:, 0].tolist() == list(range(1000, 1010))


def test_all_measures_of_silence(track: SoundTrack) -> None:
    track.feed(SoundBlock(0.0, np.zeros((SAMPLE_RATE_HZ * 3, 2), np.int16)))
    found = measure_sound(track, 0.0, 3.0)
    assert (found.loudness_lufs, found.peak_dbfs, found.silent_share, found.covered_share) == (None, None, 1.0, 1.0)
    assert (found.speech_share, found.music_share, found.clipped_share, found.dc_offset) == (0.0, 0.0, 0.0, 0.0)


def test_mono_is_the_mean() -> None:
    assert to_mono(np.asarray([[16384, 0], [-32768, -32768]], np.int16)).tolist() == [0.25, -1.0]
