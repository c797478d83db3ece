"""Augments pictures and sounds: changes what differs between cameras, microphones and places, and keeps the class.

Shape suffixes: H height, W width, M mel bands, T mel frames.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import signal

from pipeline.encoders.small.trunks import HOP, RATE_HZ

Floats = NDArray[np.float32]

FRAMES_PER_SECOND = RATE_HZ / HOP
MIN_STRETCH_SECONDS = 2.5
SMALL_SHARE = 0.5
"""Share of changed pictures that are scaled down to few pixels."""


def changed_picture(frame_HW3: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(H', W', 3), uint8: a random crop, with changed brightness, white balance, contrast, saturation, sharpness, noise and compression.

    Half of the results are mirrored, ``SMALL_SHARE`` of them scaled down.
    """
    picture = _cropped(frame_HW3, rng)
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    light = picture.astype(np.float32) / 255
    light = light ** np.exp(rng.normal(0, 0.22))
    light *= np.exp(rng.normal(0, 0.12)) * np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
    mean = light.mean()
    light = mean + (light - mean) * np.exp(rng.normal(0, 0.15))
    grey = light.mean(axis=2, keepdims=True)
    light = grey + (light - grey) * np.exp(rng.normal(0, 0.25))
    if rng.random() < 0.4:
        light = cv2.GaussianBlur(light, (0, 0), rng.uniform(0.3, 2.0))
    elif rng.random() < 0.4:
        light = light + rng.uniform(0.2, 1.0) * (light - cv2.GaussianBlur(light, (0, 0), 1.5))
    if rng.random() < 0.5:
        light = light + rng.normal(0, rng.uniform(0.003, 0.03), light.shape)
    changed = np.clip(light * 255, 0, 255).astype(np.uint8)
    _, jpeg = cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))])
    changed = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)
    return _small(changed, rng) if rng.random() < SMALL_SHARE else changed


def _small(frame_HW3: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Scaled down to a square of 24 to 96 pixels, like the pictures of small generators."""
    side = round(np.exp(rng.uniform(np.log(24), np.log(96))))
    return np.asarray(cv2.resize(frame_HW3, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _cropped(frame_HW3: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = frame_HW3.shape[:2]
    area_share, stretch = rng.uniform(0.3, 1.0), np.exp(rng.normal(0, 0.15))
    crop_height = min(height, round(height * np.sqrt(area_share) * stretch))
    crop_width = min(width, round(width * np.sqrt(area_share) / stretch))
    top, left = rng.integers(0, height - crop_height + 1), rng.integers(0, width - crop_width + 1)
    return frame_HW3[top : top + crop_height, left : left + crop_width]


def changed_mel(
    power_MT: Floats, rng: np.random.Generator, other_MT: Floats | None = None, background_MT: Floats | None = None
) -> Floats:
    """A stretch of a power mel as if recorded elsewhere and with another telephone: another frequency response, reverberation, a noise
    floor, handling noise, automatic gain, missing high bands.

    ``other_MT``, of the same class, is mixed in at up to the same level; ``background_MT``, of any class, at a lower level.
    """
    power = _stretch(power_MT, rng)
    if other_MT is not None:
        power = _mixed(power, _stretch(other_MT, rng), rng.uniform(-12, 0))
    power = power * _response(power.shape[0], rng)[:, None]
    if rng.random() < 0.3:
        power = _reverberant(power, rng)
    if background_MT is not None:
        power = _mixed(power, _stretch(background_MT, rng), rng.uniform(-25, -6))
    loudest_band = power.mean(1).max()
    if rng.random() < 0.7:
        power = power + loudest_band * _noise(power.shape, rng)
    if rng.random() < 0.25:
        power = power + loudest_band * _handling_noise(power.shape, rng)
    if rng.random() < 0.3:
        power = _gain_controlled(power, rng)
    if rng.random() < 0.25:
        cutoff_band = int(rng.integers(40, power.shape[0]))
        power = power.copy()
        power[cutoff_band:] *= 10 ** -rng.uniform(2, 5)
    return _masked(power, rng)


def _mixed(power_MT: Floats, other_MT: Floats, gain_db: float) -> Floats:
    """The sum of both at equal levels, with ``gain_db`` added to the other, which is repeated to the length of the first."""
    length = power_MT.shape[1]
    other = np.tile(other_MT, -(-length // other_MT.shape[1]))[:, :length]
    return np.asarray(power_MT / _level(power_MT) + other / _level(other) * 10 ** (gain_db / 10), np.float32)


def _reverberant(power_MT: Floats, rng: np.random.Generator) -> Floats:
    """With a share of the energy decaying exponentially, as in a room or a valley. Reverberation time (60 dB): 0.2 to 1.5 s."""
    num_frames = FRAMES_PER_SECOND * rng.uniform(0.2, 1.5)
    decay = 10 ** (-6 / num_frames)
    tail = signal.lfilter([1 - decay], [1, -decay], power_MT, axis=1)
    share = rng.uniform(0.2, 0.9)
    return np.asarray((1 - share) * power_MT + share * tail, np.float32)


def _gain_controlled(power_MT: Floats, rng: np.random.Generator) -> Floats:
    """After an automatic gain that follows the level with a time constant of 0.3 to 2 s, and evens it out in part."""
    decay = np.exp(-1 / FRAMES_PER_SECOND / rng.uniform(0.3, 2.0))
    level_T = power_MT.sum(0) + 1e-12
    smoothed_T = signal.lfilter([1 - decay], [1, -decay], level_T, zi=[decay * level_T.mean()])[0]
    gain_T = (smoothed_T + 1e-3 * level_T.mean()) ** -rng.uniform(0.3, 0.9)
    return np.asarray(power_MT * gain_T, np.float32)


def _stretch(power_MT: Floats, rng: np.random.Generator) -> Floats:
    """A random stretch of ``MIN_STRETCH_SECONDS`` to 10 s; the whole of a shorter sound."""
    length = min(power_MT.shape[1], round(rng.uniform(MIN_STRETCH_SECONDS, 10.0) * FRAMES_PER_SECOND))
    start = int(rng.integers(0, power_MT.shape[1] - length + 1))
    return power_MT[:, start : start + length]


def _level(power_MT: Floats) -> float:
    return float(power_MT.sum(0).mean()) + 1e-12


def _response(num_bands: int, rng: np.random.Generator) -> Floats:
    """(M,): the gains of a microphone in a place, a linear tilt (standard deviation 4 dB at the ends) and smooth bumps."""
    band_M = np.linspace(-1, 1, num_bands)
    gain_db_M = rng.normal(0, 4) * band_M
    knots_db = rng.normal(0, 2.5, 9)
    gain_db_M += np.interp(band_M, np.linspace(-1, 1, 9), knots_db)
    if rng.random() < 0.3:  # a small loudspeaker or a wind filter damps the low bands
        gain_db_M -= rng.uniform(5, 25) * np.clip(-(band_M + rng.uniform(0.75, 1.0)) * 6, 0, 1)
    return np.asarray(10 ** (gain_db_M / 10), np.float32)


def _noise(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """(M, T): steady noise of random colour, 2 to 55 dB below 1, the mean power of the loudest band."""
    band_M1 = np.linspace(0, 1, shape[0])[:, None]
    colour_M1 = 10 ** (rng.uniform(-2, 0.5) * band_M1)
    grain_MT = rng.gamma(4.0, 0.25, shape)
    return np.asarray(10 ** rng.uniform(-5.5, -0.2) * colour_M1 * grain_MT, np.float32)


def _handling_noise(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """(M, T): the rumble of a hand or of wind at a telephone's microphone. It is strongest in the lowest bands, and its level wanders."""
    band_M1 = np.arange(shape[0])[:, None]
    num_knots = max(2, shape[1] // 20)
    wander_db_T = np.interp(np.linspace(0, num_knots - 1, shape[1]), np.arange(num_knots), rng.normal(0, 6, num_knots))
    level_db_MT = rng.uniform(-25, 0) - band_M1 * rng.uniform(1.0, 4.0) + wander_db_T
    return np.asarray(10 ** (level_db_MT / 10) * rng.gamma(3.0, 1 / 3, shape), np.float32)


def _masked(power_MT: Floats, rng: np.random.Generator) -> Floats:
    """Some neighbouring bands damped, by at most 12 dB because silence in a band would be a clue, and a short stretch removed."""
    power = power_MT.copy()
    if rng.random() < 0.3:
        start, width = int(rng.integers(0, power.shape[0] - 10)), int(rng.integers(3, 10))
        power[start : start + width] *= 10 ** -rng.uniform(0.3, 1.2)
    if rng.random() < 0.3 and power.shape[1] > 60:
        width = int(rng.integers(1, power.shape[1] // 4))
        start = int(rng.integers(0, power.shape[1] - width))
        power = np.delete(power, np.s_[start : start + width], axis=1)
    return power
