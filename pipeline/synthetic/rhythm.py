"""The timing of a scene's events: swells, gusts and lightning. The picture and the sound of a scene use the same functions.

Each is a function of the scene's seed and of the time in seconds from the scene's start.
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
    """When its thunder begins."""
    strength: float
    """0..1: brightness and loudness."""
    across: float
    """Where the bolt stands, 0 (left) to 1 (right)."""


def swell(seed: int, times: Floats | float) -> Floats:
    """How far a wave has run up the beach, 0..1: a wave every 4 to 6 s, which rises fast and falls slowly."""
    rng = generator(seed, "swell")
    period = rng.uniform(4.0, 6.0)
    phase = np.asarray(times, np.float64) / period + rng.uniform(0, 1)
    skewed_phase = phase + 0.12 * np.sin(2 * math.pi * phase) + 0.05 * np.sin(2 * math.pi * phase * 0.37 + 1)
    return 0.5 - 0.5 * np.cos(2 * math.pi * skewed_phase)


def gust(seed: int, times: Floats | float) -> Floats:
    """Strength of the wind, 0..1: the sum of four sines, limited to that range."""
    rng = generator(seed, "gust")
    t = np.asarray(times, np.float64)
    total = np.zeros_like(t)
    for hz, weight in ((0.11, 0.5), (0.23, 0.3), (0.51, 0.14), (1.1, 0.06)):
        total = total + weight * np.sin(2 * math.pi * (hz * rng.uniform(0.85, 1.15) * t + rng.uniform(0, 1)))
    return np.clip(0.5 + 0.62 * total, 0.0, 1.0)


def strikes(seed: int, seconds: float) -> tuple[Strike, ...]:
    """The bolts of a thunderstorm of that length: one every 2.5 to 4 s, its thunder 0.3 to 0.9 s after its flash."""
    rng = generator(seed, "strikes")
    bolts = []
    flash_seconds = rng.uniform(0.6, 1.2)
    while flash_seconds < seconds - 0.5:
        delay_seconds = rng.uniform(0.3, 0.9)
        thunder_seconds = flash_seconds + delay_seconds
        bolts.append(Strike(flash_seconds, thunder_seconds, rng.uniform(0.75, 1.0), rng.uniform(0.15, 0.85)))
        flash_seconds += rng.uniform(2.5, 4.0)
    return tuple(bolts)
