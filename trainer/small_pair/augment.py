"""Many versions of few pictures and sounds: what changes from one camera, microphone and place to the next, and not the class.

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
SHORTEST_SECONDS = 2.5
SMALL_SHARE = 0.5
"""Of changed pictures, how many have few pixels."""


def changed_picture(frame_HW3: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A crop, mirrored or not, in other light, another white balance, other sharpness, noise and compression; some with few pixels."""
    picture = _cropped(frame_HW3, rng)
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    light = picture.astype(np.float32) / 255
    light = light ** np.exp(rng.normal(0, 0.22))
    light *= np.exp(rng.normal(0, 0.12)) * np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
    middle = light.mean()
    light = middle + (light - middle) * np.exp(rng.normal(0, 0.15))
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
    """Brought down to a square of 24 to 96 pixels, as what small generators draw."""
    side = round(np.exp(rng.uniform(np.log(24), np.log(96))))
    return np.asarray(cv2.resize(frame_HW3, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _cropped(frame_HW3: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = frame_HW3.shape[:2]
    area, lean = rng.uniform(0.3, 1.0), np.exp(rng.normal(0, 0.15))
    crop_height = min(height, round(height * np.sqrt(area) * lean))
    crop_width = min(width, round(width * np.sqrt(area) / lean))
    top, left = rng.integers(0, height - crop_height + 1), rng.integers(0, width - crop_width + 1)
    return frame_HW3[top : top + crop_height, left : left + crop_width]


def changed_mel(
    power_MT: Floats, rng: np.random.Generator, other_MT: Floats | None = None, behind_MT: Floats | None = None
) -> Floats:
    """A stretch of a power mel as another place and another telephone would have it: tilt and bumps, echoes, a noise floor,
    handling noise, an automatic gain, a missing top.

    ``other_MT``, of the same class, may be mixed in; ``behind_MT``, of any class, is heard behind it.
    """
    power = _stretch(power_MT, rng)
    if other_MT is not None:
        power = _mixed(power, _stretch(other_MT, rng), rng.uniform(-12, 0))
    power = power * _response(power.shape[0], rng)[:, None]
    if rng.random() < 0.3:
        power = _echoed(power, rng)
    if behind_MT is not None:
        power = _mixed(power, _stretch(behind_MT, rng), rng.uniform(-25, -6))
    loudest = power.mean(1).max()
    if rng.random() < 0.7:
        power = power + loudest * _noise(power.shape, rng)
    if rng.random() < 0.25:
        power = power + loudest * _handling(power.shape, rng)
    if rng.random() < 0.3:
        power = _levelled(power, rng)
    if rng.random() < 0.25:
        last = int(rng.integers(40, power.shape[0]))
        power = power.copy()
        power[last:] *= 10 ** -rng.uniform(2, 5)
    return _masked(power, rng)


def _mixed(power_MT: Floats, other_MT: Floats, decibels: float) -> Floats:
    """Both at once, the other so many decibels above the first; as long as the first, the other again and again."""
    length = power_MT.shape[1]
    other = np.tile(other_MT, -(-length // other_MT.shape[1]))[:, :length]
    return np.asarray(power_MT / _level(power_MT) + other / _level(other) * 10 ** (decibels / 10), np.float32)


def _echoed(power_MT: Floats, rng: np.random.Generator) -> Floats:
    """Part of the energy dies away slowly: a room, a valley, a distance. Reverberation times of 0.2 to 1.5 s."""
    frames = FRAMES_PER_SECOND * rng.uniform(0.2, 1.5)
    keep = 10 ** (-6 / frames)
    tail = signal.lfilter([1 - keep], [1, -keep], power_MT, axis=1)
    share = rng.uniform(0.2, 0.9)
    return np.asarray((1 - share) * power_MT + share * tail, np.float32)


def _levelled(power_MT: Floats, rng: np.random.Generator) -> Floats:
    """An automatic gain that follows the level within a second or so, and takes some of its changes away."""
    keep = np.exp(-1 / FRAMES_PER_SECOND / rng.uniform(0.3, 2.0))
    level_T = power_MT.sum(0) + 1e-12
    followed_T = signal.lfilter([1 - keep], [1, -keep], level_T, zi=[keep * level_T.mean()])[0]
    gain_T = (followed_T + 1e-3 * level_T.mean()) ** -rng.uniform(0.3, 0.9)
    return np.asarray(power_MT * gain_T, np.float32)


def _stretch(power_MT: Floats, rng: np.random.Generator) -> Floats:
    per_second = FRAMES_PER_SECOND
    length = min(power_MT.shape[1], round(rng.uniform(SHORTEST_SECONDS, 10.0) * per_second))
    start = int(rng.integers(0, power_MT.shape[1] - length + 1))
    return power_MT[:, start : start + length]


def _level(power_MT: Floats) -> float:
    return float(power_MT.sum(0).mean()) + 1e-12


def _response(num_bands: int, rng: np.random.Generator) -> Floats:
    """Gains of a microphone and a place: a tilt of up to about 10 dB over the range, and smooth bumps."""
    place = np.linspace(-1, 1, num_bands)
    decibels = rng.normal(0, 4) * place
    knots = rng.normal(0, 2.5, 9)
    decibels += np.interp(place, np.linspace(-1, 1, 9), knots)
    if rng.random() < 0.3:  # a small loudspeaker or a wind filter: no lows
        decibels -= rng.uniform(5, 25) * np.clip(-(place + rng.uniform(0.75, 1.0)) * 6, 0, 1)
    return np.asarray(10 ** (decibels / 10), np.float32)


def _noise(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Steady noise of any colour, 2 to 55 dB below the loudest band's mean: out of doors, little is recorded cleanly."""
    place = np.linspace(0, 1, shape[0])[:, None]
    colour = 10 ** (rng.uniform(-2, 0.5) * place)
    grain = rng.gamma(4.0, 0.25, shape)
    return np.asarray(10 ** rng.uniform(-5.5, -0.2) * colour * grain, np.float32)


def _handling(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """What a hand and the wind do to a telephone's microphone: rumble that comes and goes, in the lowest bands alone."""
    place = np.arange(shape[0])[:, None]
    num_knots = max(2, shape[1] // 20)
    wander = np.interp(np.linspace(0, num_knots - 1, shape[1]), np.arange(num_knots), rng.normal(0, 6, num_knots))
    decibels = rng.uniform(-25, 0) - place * rng.uniform(1.0, 4.0) + wander
    return np.asarray(10 ** (decibels / 10) * rng.gamma(3.0, 1 / 3, shape), np.float32)


def _masked(power_MT: Floats, rng: np.random.Generator) -> Floats:
    """A few neighbouring bands damped (never silenced: that would be heard), and a short stretch left out."""
    power = power_MT.copy()
    if rng.random() < 0.3:
        start, width = int(rng.integers(0, power.shape[0] - 10)), int(rng.integers(3, 10))
        power[start : start + width] *= 10 ** -rng.uniform(0.3, 1.2)
    if rng.random() < 0.3 and power.shape[1] > 60:
        width = int(rng.integers(1, power.shape[1] // 4))
        start = int(rng.integers(0, power.shape[1] - width))
        power = np.delete(power, np.s_[start : start + width], axis=1)
    return power
