"""Sketched sounds: what a class sounds like by its physics, with everything else left to chance.

Recordings are few; sketches say which of their properties belong to the class (drops are short, birds whistle, swells take
seconds) and which do not (pitch, rate, colour of the background, how near it is). Nothing here is meant to be listened to.

Shape suffixes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

Floats = NDArray[np.float64]
Random = np.random.Generator

RATE_HZ = 44_100


def sketch(kind: str, seed: int, seconds: float = 6.0) -> NDArray[np.float32]:
    """(N,) at 44.1 kHz, peak 0.5; ``kind`` is one of KINDS. The same for the same seed."""
    rng = np.random.default_rng([sum(map(ord, kind)), seed])
    count = round(seconds * RATE_HZ)
    sound_N = _MAKERS[kind](rng, count)
    background = _noise(rng, count, rng.uniform(40, 300), rng.uniform(1000, 8000), rng.uniform(0.2, 1.2))
    sound_N = sound_N / (np.sqrt(np.mean(sound_N**2)) + 1e-9) + 10 ** rng.uniform(-2.5, -0.7) * background
    return np.asarray(0.5 * sound_N / np.abs(sound_N).max(), np.float32)


def _noise(rng: Random, count: int, low_hz: float, high_hz: float, tilt: float = 0.5) -> Floats:
    """Noise of RMS 1 in a band with soft edges; its amplitude falls as f ** -tilt."""
    size = next_fast_len(count, real=True)
    hz = np.maximum(rfftfreq(size, 1 / RATE_HZ), 1.0)
    gain = hz**-tilt / (1 + (low_hz / hz) ** 4) / (1 + (hz / high_hz) ** 4)
    noise = irfft(rfft(rng.standard_normal(size)) * gain, size)[:count]
    return np.asarray(noise / np.sqrt(np.mean(noise**2)))


def _slow(rng: Random, count: int, hz: float, depth_db: float) -> Floats:
    """A gain that wanders at about ``hz``, by about ``depth_db`` either way."""
    num_knots = max(4, round(count / RATE_HZ * hz * 2) + 3)
    knots = rng.normal(0, depth_db, num_knots)
    wander = np.interp(np.linspace(0, num_knots - 1, count), np.arange(num_knots), knots)
    return np.asarray(10 ** (wander / 20))


def _grains(rng: Random, count: int, per_second: float, grain: Callable[[], Floats], spread: float = 0.8) -> Floats:
    """Short sounds at random times, log-normal in strength; of many, a few shapes are used again and again."""
    number = max(1, rng.poisson(per_second * count / RATE_HZ))
    shapes = [grain() for _ in range(min(number, 24))]
    sound = np.zeros(count + max(map(len, shapes)))
    for start, strength in zip(rng.integers(0, count, number), rng.lognormal(0, spread, number), strict=True):
        shape = shapes[rng.integers(len(shapes))]
        sound[start : start + len(shape)] += strength * shape
    return sound[:count]


def _blip(rng: Random, low_hz: float, high_hz: float, cycles: float, rise: float) -> Floats:
    """A tone that dies away after about ``cycles``; its pitch changes by the factor ``rise`` meanwhile."""
    hz = low_hz * (high_hz / low_hz) ** rng.uniform()
    decay = cycles * rng.uniform(0.5, 2) / hz
    t = np.arange(max(8, round(5 * decay * RATE_HZ))) / RATE_HZ
    phase = 2 * np.pi * hz * t * (1 + (rise - 1) * t / (10 * decay))
    return np.asarray(np.sin(phase) * np.exp(-t / decay) * np.minimum(1, t * hz))


def _snap(rng: Random, low_hz: float, high_hz: float, decay_seconds: float) -> Floats:
    """A burst of noise that dies away."""
    decay = decay_seconds * rng.uniform(0.4, 2.5)
    length = max(32, round(5 * decay * RATE_HZ))
    t = np.arange(length) / RATE_HZ
    return np.asarray(_noise(rng, length, low_hz, high_hz, rng.uniform(0, 0.6)) * np.exp(-t / decay))


def _rain(rng: Random, count: int) -> Floats:
    hiss = _noise(rng, count, rng.uniform(300, 2000), rng.uniform(6000, 16000), rng.uniform(0, 0.6))
    drops = _grains(rng, count, 10 ** rng.uniform(1.2, 2.6), lambda: _snap(rng, 800, 12000, 0.002), 0.9)
    knocks = _grains(rng, count, 10 ** rng.uniform(0, 1.5), lambda: _blip(rng, 300, 3000, 4, 1), 0.8)
    return hiss + _mix(rng, drops, -20, 10) + _mix(rng, knocks, -30, 0)


def _mix(rng: Random, sound: Floats, low_db: float, high_db: float) -> Floats:
    return np.asarray(sound / (np.sqrt(np.mean(sound**2)) + 1e-9) * 10 ** (rng.uniform(low_db, high_db) / 20))


def _thunder(rng: Random, count: int) -> Floats:
    gain = np.full(count, 10 ** rng.uniform(-2.5, -1))
    t = np.arange(count) / RATE_HZ
    for _ in range(rng.integers(1, 4)):
        age = t - rng.uniform(-1, 0.8 * count / RATE_HZ)
        gain += rng.uniform(0.3, 1) * np.where(
            age > 0, np.exp(-age / rng.uniform(0.8, 4)) * np.minimum(1, age / 0.05), 0
        )
    roll = _noise(rng, count, 20, rng.uniform(80, 400), rng.uniform(0.5, 1.5)) * _slow(rng, count, 4, 4) * gain
    crack = _noise(rng, count, 100, rng.uniform(1000, 5000), 0.7) * gain**2.5
    rain = _rain(rng, count) if rng.random() < 0.6 else np.zeros(count)
    thunder: Floats = roll + _mix(rng, crack, -30, 0) + _mix(rng, rain, -40, -8)
    return thunder


def _ocean(rng: Random, count: int) -> Floats:
    t = np.arange(count) / RATE_HZ
    period = rng.uniform(3, 11)
    swell = (0.5 + 0.5 * np.sin(2 * np.pi * (t / period + rng.uniform()))) ** rng.uniform(1, 3)
    swell = swell * _slow(rng, count, 0.4, 2)
    wash = _noise(rng, count, rng.uniform(100, 800), rng.uniform(3000, 10000), rng.uniform(0.3, 0.9)) * swell
    rumble = _noise(rng, count, 30, rng.uniform(150, 600), 0.6) * (0.3 + 0.7 * swell)
    gulls = _whistles(rng, count, 700, 2200, 0.25) if rng.random() < 0.3 else np.zeros(count)
    return wash + _mix(rng, rumble, -15, 4) + _mix(rng, gulls, -20, 5)


def _whistles(rng: Random, count: int, low_hz: float, high_hz: float, seconds: float) -> Floats:
    """Calls with harmonics that glide, some in series."""
    sound = np.zeros(count)
    for _ in range(rng.integers(2, 10)):
        hz, glide, length = (
            low_hz * (high_hz / low_hz) ** rng.uniform(),
            rng.normal(0, 0.3),
            seconds * rng.uniform(0.3, 2),
        )
        t = np.arange(round(length * RATE_HZ)) / RATE_HZ
        wobble = rng.uniform(0, 0.1) * np.sin(2 * np.pi * rng.uniform(3, 30) * t)
        phase = 2 * np.pi * np.cumsum(hz * (1 + glide * t / length + wobble)) / RATE_HZ
        call = sum(rng.uniform(0, 1) ** 2 / order * np.sin(order * phase) for order in (1, 2, 3)) + np.sin(phase)
        call = call * np.sin(np.pi * t / length) ** 0.7 * rng.lognormal(0, 0.6)
        start, gap = rng.uniform(0, count), round(length * rng.uniform(1.05, 2) * RATE_HZ)
        for place in range(rng.integers(1, 7)):
            at = int(start) + place * gap
            if 0 <= at < count - len(call):
                sound[at : at + len(call)] += call
    return sound + 1e-9


def _river(rng: Random, count: int) -> Floats:
    flow = _noise(rng, count, rng.uniform(150, 500), rng.uniform(2000, 8000), rng.uniform(0.3, 0.9))
    gurgle = _grains(rng, count, rng.uniform(25, 160), lambda: _blip(rng, 250, 3500, 10, rng.uniform(1, 3)), 0.6)
    laps = _grains(rng, count, rng.uniform(0.5, 3), lambda: _snap(rng, 150, 3000, 0.12), 0.7)
    return _mix(rng, flow, -12, 0) + _mix(rng, gurgle, -8, 4) + _mix(rng, laps, -25, 0)


def _splashing(rng: Random, count: int) -> Floats:
    drips = _grains(rng, count, 10 ** rng.uniform(0, 1.2), lambda: _blip(rng, 500, 5000, 12, rng.uniform(1, 3)), 0.8)
    splashes = _grains(rng, count, rng.uniform(0.5, 5), lambda: _snap(rng, 300, 7000, 0.1), 0.8)
    return _mix(rng, drips, -4, 4) + _mix(rng, splashes, -25, 4)


def _waterfall(rng: Random, count: int) -> Floats:
    roar = _noise(rng, count, rng.uniform(40, 250), rng.uniform(600, 3000), rng.uniform(0, 0.6))
    spray = _noise(rng, count, rng.uniform(400, 1500), rng.uniform(5000, 14000), rng.uniform(0, 0.5))
    return (roar + _mix(rng, spray, -12, 2)) * _slow(rng, count, 0.5, 0.4)


def _underwater(rng: Random, count: int) -> Floats:
    rumble = _noise(rng, count, 25, rng.uniform(150, 500), rng.uniform(0.5, 1.2)) * _slow(rng, count, 0.4, 3)
    streams = _grains(rng, count, rng.uniform(10, 120), lambda: _blip(rng, 150, 1500, 8, rng.uniform(1, 2.5)), 0.6)
    return _mix(rng, rumble, -6, 3) + _mix(rng, streams * _slow(rng, count, 0.8, 8), -6, 6)


def _wind(rng: Random, count: int) -> Floats:
    gust = _slow(rng, count, rng.uniform(0.2, 0.8), rng.uniform(2, 7))
    low = _noise(rng, count, 20, rng.uniform(150, 700), rng.uniform(0.4, 1.5)) * gust
    leaves = _noise(rng, count, rng.uniform(800, 3000), rng.uniform(5000, 12000), 0.3) * gust ** rng.uniform(0.8, 1.5)
    centre = rng.uniform(250, 1000)
    howl = _noise(rng, count, centre * 0.95, centre * 1.05, 0) * gust**1.5
    return low + _mix(rng, leaves, -45, -3) + _mix(rng, howl, -40, 0)


def _fire(rng: Random, count: int) -> Floats:
    rumble = _noise(rng, count, 30, rng.uniform(200, 900), rng.uniform(0.4, 1)) * _slow(rng, count, 2, 1.5)
    crackle = _grains(rng, count, 10 ** rng.uniform(0.7, 1.9), lambda: _snap(rng, 700, 9000, 0.002), 1.2)
    pops = _grains(rng, count, rng.uniform(0.3, 3), lambda: _snap(rng, 200, 4000, 0.01), 1.0)
    strength = rng.uniform(2, 12) / (np.abs(crackle).max() + 1e-9)
    return np.asarray(_mix(rng, rumble, -25, 0) + crackle * strength + _mix(rng, pops, -15, 2))


def _forest(rng: Random, count: int) -> Floats:
    birds = sum(
        (
            _whistles(rng, count, *((1800, 4000), (2500, 7500))[rng.integers(2)], 0.12)
            for _ in range(rng.integers(2, 6))
        ),
        np.zeros(count),
    )
    leaves = _noise(rng, count, rng.uniform(200, 1500), rng.uniform(4000, 10000), 0.5) * _slow(rng, count, 0.5, 2)
    return _mix(rng, birds, -5, 6) + _mix(rng, leaves, -25, -3)


def _night(rng: Random, count: int) -> Floats:
    t = np.arange(count) / RATE_HZ
    sound = np.zeros(count)
    for _ in range(rng.integers(1, 5)):
        pulses = np.maximum(0, np.sin(2 * np.pi * rng.uniform(8, 60) * t + rng.uniform(0, 6)))
        chirps = np.sin(2 * np.pi * rng.uniform(0.7, 4) * t + rng.uniform(0, 6)) > rng.uniform(-1.1, 0.5)
        sound += rng.lognormal(0, 0.5) * np.sin(2 * np.pi * rng.uniform(2200, 7000) * t) * pulses * chirps
    return sound + _mix(rng, _noise(rng, count, 100, 3000, 0.8), -30, -6)


def _snow(rng: Random, count: int) -> Floats:
    if rng.random() < 0.3:
        return _noise(rng, count, 30, rng.uniform(200, 1500), rng.uniform(0.5, 1.5)) * _slow(rng, count, 0.4, 2)
    sound = np.zeros(count)
    step = rng.uniform(0.45, 0.9)
    for at in np.arange(rng.uniform(0, step), count / RATE_HZ - 0.4, step):
        length = round(rng.uniform(0.15, 0.35) * RATE_HZ)
        crunch = _noise(rng, length, rng.uniform(200, 900), rng.uniform(3000, 9000), 0.4) * np.hanning(length)
        grain = np.repeat(rng.gamma(0.4, 1.0, length // 200 + 1), 200)[:length]
        start = round((at + rng.normal(0, 0.02)) * RATE_HZ)
        if start >= 0:
            sound[start : start + length] += (crunch * grain * rng.lognormal(0, 0.3))[: count - start]
    return sound + 1e-9


def _explosion(rng: Random, count: int) -> Floats:
    sound = np.zeros(count)
    for _ in range(rng.integers(1, 5)):
        blast = _snap(rng, 20, rng.uniform(500, 4000), rng.uniform(0.2, 0.8))
        start = int(rng.integers(0, count - RATE_HZ))
        sound[start : start + len(blast)] += (blast * rng.lognormal(0, 0.5))[: count - start]
    return np.asarray(np.tanh(sound * rng.uniform(0.3, 2)))


_MAKERS: dict[str, Callable[[Random, int], Floats]] = {
    "rain": _rain, "thunder": _thunder, "ocean": _ocean, "river": _river, "splashing_water": _splashing,
    "waterfall": _waterfall, "underwater": _underwater, "wind": _wind, "fire": _fire, "forest": _forest, "night": _night,
    "snow": _snow, "explosion": _explosion,
}  # fmt: skip
KINDS = tuple(_MAKERS)
