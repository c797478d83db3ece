"""Nature sounds, synthesised from shaped noise, impulses, short tones and bubbles.

Swells, gusts, showers, crackles and strikes come at the same times as in the picture (:mod:`pipeline.synthetic.rhythm`). The two channels
share these times and differ in their noise. ``rate`` is in samples per second.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import signal
from scipy.fft import next_fast_len

from pipeline.synthetic import rhythm
from pipeline.synthetic.textures import Floats, generator

Sound = NDArray[np.float32]
_CHANNELS = 2


def shaped_noise(rng: np.random.Generator, count: int, rate: int, gain: Callable[[Floats], Floats]) -> Floats:
    """White noise (count,) filtered by ``gain``, which maps frequencies in Hz to amplitude factors; its RMS is 1."""
    size = next_fast_len(count, real=True)
    spectrum = np.fft.rfft(rng.standard_normal(size, dtype=np.float32))
    noise = np.fft.irfft(spectrum * gain(np.fft.rfftfreq(size, 1 / rate)), size)[:count]
    return np.asarray(noise / np.sqrt(np.mean(noise**2)))


def _band(low_hz: float, high_hz: float, tilt: float = 0.0) -> Callable[[Floats], Floats]:
    """The gain of a band-pass filter: it falls as f^-tilt inside the band, and with the fourth power of f outside."""

    def gain(hz: Floats) -> Floats:
        f = np.maximum(hz, 1.0)
        return np.asarray(f**-tilt / (1 + (low_hz / f) ** 4) / (1 + (f / high_hz) ** 4))

    return gain


def _peak(hz: float, width: float) -> Callable[[Floats], Floats]:
    """The gain of a Gaussian peak at ``hz``; ``width`` is a share of that frequency."""
    return lambda f: np.exp(-(((f / hz - 1) / width) ** 2))


def _impulses(rng: np.random.Generator, count: int, rate: int, per_second: float, spread: float) -> Floats:
    """Impulses (count,) at random times, of either sign; ``spread`` is the standard deviation of the log of their heights."""
    train = np.zeros(count)
    num_impulses = rng.poisson(per_second * count / rate)
    positions, signs = rng.integers(0, count, num_impulses), rng.choice((-1.0, 1.0), num_impulses)
    np.add.at(train, positions, signs * np.exp(rng.normal(0, spread, num_impulses)))
    return train


def _ringing(rng: np.random.Generator, rate: int, hz: float, decay_seconds: float) -> Floats:
    """A tone with noise that decays exponentially, such as the sound of one drop or one snap of a fire."""
    t = np.arange(round(decay_seconds * 6 * rate)) / rate
    return np.asarray((np.sin(2 * np.pi * hz * t) + 0.5 * rng.standard_normal(len(t))) * np.exp(-t / decay_seconds))


def _bubbles(
    rng: np.random.Generator, count: int, rate: int, per_second: float, band_hz: tuple[float, float]
) -> Floats:
    """Short tones (count,) at random times that rise in pitch while they decay, as rising bubbles do."""
    sound = np.zeros(count)
    for _ in range(rng.poisson(per_second * count / rate)):
        hz = band_hz[0] * (band_hz[1] / band_hz[0]) ** rng.uniform()
        decay = rng.uniform(6, 14) / hz
        t = np.arange(round(5 * decay * rate)) / rate
        start = int(rng.integers(0, count))
        tone = np.sin(2 * np.pi * hz * t * (1 + rng.uniform(0.5, 2.5) * t / (5 * decay))) * np.exp(-t / decay)
        tone *= np.minimum(t * hz, 1) * rng.lognormal(0, 0.6)
        end = min(start + len(tone), count)
        sound[start:end] += tone[: end - start]
    return sound


def _interpolated(times: Floats, curve: Callable[[Floats], Floats]) -> Floats:
    """``curve`` at ``times``, in seconds: computed 100 times a second and interpolated, since it varies slowly."""
    coarse_times = np.linspace(0, times[-1], max(2, round(times[-1] * 100)))
    return np.interp(times, coarse_times, curve(coarse_times))


# Each function below returns one channel (samples,); ``t`` are the times of the samples in seconds.


def _rain(seed: int, rng: np.random.Generator, t: Floats, rate: int) -> Floats:
    sound = 0.5 * shaped_noise(rng, len(t), rate, _band(700, 9000, 0.35))
    for hz, decay, per_second, gain in ((4200, 0.0012, 500, 1.1), (2400, 0.002, 260, 1.2), (1100, 0.004, 40, 1.6)):
        drops = _impulses(rng, len(t), rate, per_second, 0.7)
        sound += gain * signal.fftconvolve(drops, _ringing(rng, rate, hz, decay))[: len(t)]
    return np.asarray(sound * (0.4 + 1.2 * _interpolated(t, lambda times: rhythm.shower(seed, times))))


def _ocean(seed: int, rng: np.random.Generator, t: Floats, rate: int) -> Floats:
    swell = _interpolated(t, lambda times: rhythm.swell(seed, times))
    rumble = shaped_noise(rng, len(t), rate, _band(50, 420, 0.5))
    hiss = shaped_noise(rng, len(t), rate, _band(500, 7000, 0.5))
    return np.asarray(rumble * (0.4 + 0.6 * swell) + hiss * (0.16 + 1.1 * swell**2))


def _fire(seed: int, rng: np.random.Generator, t: Floats, rate: int) -> Floats:
    sound = 0.45 * shaped_noise(rng, len(t), rate, _band(40, 260, 0.5)) + 0.1 * shaped_noise(
        rng, len(t), rate, _band(900, 6000)
    )
    for hz, decay, per_second, gain in ((3600, 0.0012, 22, 1.4), (1900, 0.003, 9, 1.8)):
        snaps = _impulses(rng, len(t), rate, per_second, 0.9)
        sound += gain * signal.fftconvolve(snaps, _ringing(rng, rate, hz, decay))[: len(t)]
    sound *= 0.4 + 1.2 * _interpolated(t, lambda times: rhythm.draught(seed, times))
    crackles = np.zeros(len(t))
    for crackle in rhythm.crackles(seed, len(t) / rate):
        height = 9 * crackle.strength * rng.choice((-1.0, 1.0))
        crackles[min(round((crackle.seconds + rng.uniform(0, 0.01)) * rate), len(t) - 1)] += height
    sound += signal.fftconvolve(crackles, _ringing(rng, rate, 750, 0.008))[: len(t)]
    return np.asarray(np.tanh(sound / 4) * 4)


def _thunder(seed: int, rng: np.random.Generator, t: Floats, rate: int) -> Floats:
    sound = 0.1 * shaped_noise(rng, len(t), rate, _band(600, 8000, 0.3))
    boom = shaped_noise(rng, len(t), rate, _band(22, 130, 0.6))
    crack = shaped_noise(rng, len(t), rate, _band(120, 2200, 0.7))
    roll_times = np.arange(0, t[-1] + 0.2, 0.12)
    roll = np.interp(t, roll_times, rng.uniform(0.35, 1.3, len(roll_times)))
    for strike in rhythm.strikes(seed, float(t[-1])):
        age = np.maximum(t - strike.thunder_seconds, 0.0)
        attack = np.minimum(age / 0.02, 1.0)
        sound += strike.strength * attack * (1.7 * boom * np.exp(-age / 1.3) * roll + 0.9 * crack * np.exp(-age / 0.28))
    return np.asarray(sound)


def _wind(seed: int, rng: np.random.Generator, t: Floats, rate: int) -> Floats:
    gust = _interpolated(t, lambda times: rhythm.gust(seed, times))
    sound = 0.5 * shaped_noise(rng, len(t), rate, _band(60, 500, 0.8)) * (0.35 + 0.9 * gust)
    for hz, width, loudest_at in ((380, 0.22, 0.3), (560, 0.18, 0.55), (820, 0.16, 0.85)):
        howl = shaped_noise(rng, len(t), rate, _peak(hz, width))
        sound = sound + 0.5 * howl * np.exp(-(((gust - loudest_at) / 0.3) ** 2)) * (0.3 + gust)
    return np.asarray(sound + 0.12 * gust * shaped_noise(rng, len(t), rate, _band(1500, 7000)))


def _river(seed: int, rng: np.random.Generator, t: Floats, rate: int) -> Floats:
    flow = 0.35 * shaped_noise(rng, len(t), rate, _band(300, 5000, 0.5))
    return np.asarray(
        flow + 0.6 * _bubbles(rng, len(t), rate, 110, (350, 2400)) + 0.3 * _bubbles(rng, len(t), rate, 60, (1200, 4500))
    )


def _waterfall(seed: int, rng: np.random.Generator, t: Floats, rate: int) -> Floats:
    roar = shaped_noise(rng, len(t), rate, _band(70, 900, 0.35))
    return np.asarray(roar + 0.8 * shaped_noise(rng, len(t), rate, _band(500, 11000, 0.2)))


def _underwater(seed: int, rng: np.random.Generator, t: Floats, rate: int) -> Floats:
    envelope = 1 + 0.35 * _interpolated(t, lambda times: np.sin(2 * np.pi * 0.21 * times + seed))
    rumble = shaped_noise(rng, len(t), rate, _band(35, 240, 0.7)) * envelope
    return np.asarray(0.8 * rumble + 0.4 * _bubbles(rng, len(t), rate, 45, (450, 1800)))


_NATURE: dict[str, tuple[Callable[[int, np.random.Generator, Floats, int], Floats], float]] = {
    # the function, and the RMS level of its sound in dB relative to full scale
    "rain": (_rain, -24.0),
    "ocean": (_ocean, -23.0),
    "fire": (_fire, -25.0),
    "thunder": (_thunder, -21.0),
    "wind": (_wind, -23.0),
    "river": (_river, -24.0),
    "waterfall": (_waterfall, -20.0),
    "underwater": (_underwater, -20.0),
}
NATURE_KINDS = tuple(_NATURE)


def levelled(sound: Floats, rms_dbfs: float) -> Sound:
    """The sound scaled to an RMS level in dB relative to full scale; tanh then limits its peaks to -0.9..0.9."""
    scaled = sound * (10 ** (rms_dbfs / 20) / max(float(np.sqrt(np.mean(sound**2))), 1e-9))
    return np.asarray(np.tanh(scaled / 0.9) * 0.9, dtype=np.float32)


def nature_sound(kind: str, seed: int, seconds: float, rate: int = 48000) -> Sound:
    """The sound of a scene, (samples, 2) float32, -1..1; ``kind`` is one of ``NATURE_KINDS``."""
    make_channel, rms_dbfs = _NATURE[kind]
    t = np.arange(round(seconds * rate)) / rate
    channels = [make_channel(seed, generator(seed, kind, "sound", channel), t, rate) for channel in range(_CHANNELS)]
    fade = np.minimum(1.0, np.minimum(t + 1 / rate, seconds - t) / 0.015)
    return levelled(np.stack(channels, axis=-1) * fade[:, None], rms_dbfs)
