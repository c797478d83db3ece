"""When things happen in a scene: swells, gusts and lightning, the same for its picture and its sound.

Everything is a function of the scene's seed and of time in seconds from the scene's start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.textures import Floats, generator

FLASH_SECONDS = 0.7
"""How long a lightning flash takes to die away."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One lightning bolt."""

    flash_seconds: float
    thunder_seconds: float
    """When its thunder begins to be heard."""
    strength: float
    """0..1: brightness and loudness."""
    across: float
    """Where the bolt stands, 0 (left) to 1 (right)."""


def swell(seed: int, times: Floats | float) -> Floats:
    """How far a wave has come in, 0..1: a wave every 4 to 6 s, quick to rise and slow to fall."""
    rng = generator(seed, "swell")
    period = rng.uniform(4.0, 6.0)
    phase = np.asarray(times, np.float64) / period + rng.uniform(0, 1)
    bent = phase + 0.12 * np.sin(2 * math.pi * phase) + 0.05 * np.sin(2 * math.pi * phase * 0.37 + 1)
    return 0.5 - 0.5 * np.cos(2 * math.pi * bent)


def gust(seed: int, times: Floats | float) -> Floats:
    """Strength of the wind, 0..1."""
    rng = generator(seed, "gust")
    t = np.asarray(times, np.float64)
    total = np.zeros_like(t)
    for hertz, weight in ((0.11, 0.5), (0.23, 0.3), (0.51, 0.14), (1.1, 0.06)):
        total = total + weight * np.sin(2 * math.pi * (hertz * rng.uniform(0.85, 1.15) * t + rng.uniform(0, 1)))
    return np.clip(0.5 + 0.62 * total, 0.0, 1.0)


def strikes(seed: int, seconds: float) -> tuple[Strike, ...]:
    """The bolts of a thunderstorm: one every 2.5 to 4 s, each heard 0.3 to 0.9 s after it is seen."""
    rng = generator(seed, "strikes")
    found = []
    at = rng.uniform(0.6, 1.2)
    while at < seconds - 0.5:
        delay = rng.uniform(0.3, 0.9)
        found.append(Strike(at, at + delay, rng.uniform(0.75, 1.0), rng.uniform(0.15, 0.85)))
        at += rng.uniform(2.5, 4.0)
    return tuple(found)
