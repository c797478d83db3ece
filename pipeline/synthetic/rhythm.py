"""The timing of a scene's events: swells, gusts, showers, crackles and lightning. Picture and sound of a scene use the same functions.

Each is a function of the scene's seed and of the time in seconds from the scene's start.

| class | louder by | and in the picture |
|---|---|---|
| ocean | ``swell`` | a wave breaks, its foam runs up the beach (``wave_phase``) |
| rain | ``shower`` | streaks and rings become more |
| fire | ``draught``, ``crackles`` | flames rise higher and faster; at a crackle they leap, and sparks fly |
| wind | ``gust`` | the wheat bends deeper and flutters, the waves in it run faster |
| thunder | ``strikes`` | the sky lights up: with the clap if the bolt is close, before it if it is far |
| river, waterfall, underwater | nothing | moves evenly: no event is heard that could be seen |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.textures import Floats, generator

FLASH_SECONDS = 2.4
"""How long the light of a bolt takes to die away."""
_CLOSE_SHARE = 0.8
"""Share of the bolts whose thunder is heard with the flash."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One lightning bolt."""

    flash_seconds: float
    thunder_seconds: float
    """When its thunder begins."""
    strength: float
    """0..1: brightness and loudness."""
    across: float
    """Where the bolt stands, 0 (left) to 1 (right)."""


@dataclass(frozen=True, slots=True)
class Crackle:
    """A log cracks in the fire."""

    seconds: float
    strength: float
    """0..1: loudness, and how high the flames leap."""


def wave_phase(seed: int, times: Floats | float) -> Floats:
    """Phase of the waves in cycles, one every 4 to 6 s: :func:`swell` is 0 at whole numbers and 1 half-way between them."""
    rng = generator(seed, "swell")
    period = rng.uniform(4.0, 6.0)
    phase = np.asarray(times, np.float64) / period + rng.uniform(0, 1)
    return np.asarray(phase + 0.12 * np.sin(2 * math.pi * phase) + 0.05 * np.sin(2 * math.pi * phase * 0.37 + 1))


def swell(seed: int, times: Floats | float) -> Floats:
    """How loud a wave is, 0..1: silent when it is far, loudest when it breaks and runs up the beach."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * math.pi * wave_phase(seed, times)))


def gust(seed: int, times: Floats | float) -> Floats:
    """Strength of the wind, 0..1."""
    return _wavering(seed, "gust", times, ((0.11, 0.5), (0.23, 0.3), (0.51, 0.14), (1.1, 0.06)))


def shower(seed: int, times: Floats | float) -> Floats:
    """Density of the rain, 0..1."""
    return _wavering(seed, "shower", times, ((0.17, 0.5), (0.37, 0.3), (0.8, 0.2)))


def draught(seed: int, times: Floats | float) -> Floats:
    """How strongly a fire burns, 0..1."""
    return _wavering(seed, "draught", times, ((0.23, 0.4), (0.51, 0.36), (1.2, 0.24)))


def _wavering(seed: int, name: str, times: Floats | float, parts: Sequence[tuple[float, float]]) -> Floats:
    """The sum of sines of random phase, limited to 0..1. ``parts``: (frequency in Hz, weight) of each; weights add up to 1."""
    rng = generator(seed, name)
    t = np.asarray(times, np.float64)
    total = np.zeros_like(t)
    for hz, weight in parts:
        total = total + weight * np.sin(2 * math.pi * (hz * rng.uniform(0.85, 1.15) * t + rng.uniform(0, 1)))
    return np.clip(0.5 + 0.62 * total, 0.0, 1.0)


class Travelled:
    """How far something has moved whose speed follows a curve: the integral of ``curve`` from 0 to a time, in seconds.

    It is summed 100 times a second. ``curve`` takes times in seconds; ``seconds`` is the length of the scene.
    """

    def __init__(self, curve: Callable[[Floats], Floats], seconds: float) -> None:
        self._times = np.arange(0, seconds + 1.0, 0.01)
        self._sums = np.concatenate([[0.0], np.cumsum(curve(self._times[:-1] + 0.005) * 0.01)])

    def __call__(self, t: float) -> float:
        return float(np.interp(t, self._times, self._sums))


def crackles(seed: int, seconds: float) -> tuple[Crackle, ...]:
    """The crackles of a fire of that length: one every 0.35 to 1.4 s."""
    rng = generator(seed, "crackles")
    found = []
    at = rng.uniform(0.1, 0.8)
    while at < seconds:
        found.append(Crackle(at, rng.uniform(0.3, 1.0)))
        at += rng.uniform(0.35, 1.4)
    return tuple(found)


def strikes(seed: int, seconds: float) -> tuple[Strike, ...]:
    """The bolts of a thunderstorm of that length: one every 2.5 to 4 s.

    Four of five are close: their thunder begins at most 0.08 s after their flash. That of the others, which are weaker, begins
    0.3 to 1.5 s after it. The first is close.
    """
    rng = generator(seed, "strikes")
    bolts: list[Strike] = []
    flash_seconds = rng.uniform(0.6, 1.2)
    while flash_seconds < seconds - 0.5:
        is_close = rng.uniform() < _CLOSE_SHARE or not bolts
        delay_seconds = rng.uniform(0.02, 0.08) if is_close else rng.uniform(0.3, 1.5)
        strength = rng.uniform(0.75, 1.0) if is_close else rng.uniform(0.3, 0.45)
        bolts.append(Strike(flash_seconds, flash_seconds + delay_seconds, strength, rng.uniform(0.15, 0.85)))
        flash_seconds += rng.uniform(2.5, 4.0)
    return tuple(bolts)
