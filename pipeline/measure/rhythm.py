"""Agreement in time: does the sound rise when the picture moves or brightens, and how much later?

Numbers on one grid, a tenth of a second apart. Each is turned into its rises (what is more than 0.2 s before, else 0), and
the rises of the sound are correlated with those of the picture at every lag of at most a second:

    light   ____|‾‾‾|_________|‾‾‾|____        rises   ____|_____________|_______
    sound   ________|‾‾‾|_________|‾‾‾|        rises   ________|_____________|___      lag 0.4 s, match near 1

A second is as far as sound falls behind in 340 m; farther thunder is not found, because in a wider range chance finds a match as
easily as truth. Already here, things that have nothing to do with each other match, at the best of the lags of a ten-second clip,
by 0.2 to 0.35; one in twenty pairs by 0.35 (noise), 0.6 (a few single events) or 0.8 (slow swells). Shorter clips match higher.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

STEP_SECONDS = 0.1
RISE_STEPS = 2
"""A rise is over this many steps: as far apart as the frames that motion compares."""
MAX_LAG_STEPS = 10
MIN_SECONDS = 3.0
"""Of a shorter stretch too little is left at the greatest lag."""
FLOOR_DB = -60.0
"""What is quieter is silence."""
SMALLEST_LIGHT, SMALLEST_MOTION, SMALLEST_SOUND_DB = 0.5, 0.5, 1.5
"""The greatest rise must reach this (luma 0..255, its change in 0.2 s, decibels), or nothing rises: an encoder's flicker stays below,
and so does the loudness of steady noise."""

Series = npt.NDArray[np.float64]


def on_grid(seconds: Series, values: Series, start: float, end: float) -> Series:
    """(steps,) the mean of the values in every step of ``[start, end)``; where there is none, that of the step before.

    Values that are nan count as none; the steps before the first value have the first.
    """
    num_steps = int(round((end - start) / STEP_SECONDS, 6))
    steps = np.floor((seconds - start) / STEP_SECONDS + 1e-6).astype(np.int64)
    fits = (steps >= 0) & (steps < num_steps) & ~np.isnan(values)
    if not fits.any():
        return np.zeros(num_steps)
    counts = np.bincount(steps[fits], minlength=num_steps)
    means = np.bincount(steps[fits], values[fits], minlength=num_steps) / np.maximum(counts, 1)
    filled = np.flatnonzero(counts)
    latest = np.searchsorted(filled, np.arange(num_steps), "right") - 1
    return np.asarray(means[filled[np.maximum(latest, 0)]], np.float64)


def envelope_db(mono: npt.NDArray[np.float32], sample_rate_hz: int) -> Series:
    """(steps,) RMS level of every step in dB full scale, at least FLOOR_DB."""
    size = round(STEP_SECONDS * sample_rate_hz)
    blocks = mono[: mono.size // size * size].reshape(-1, size)
    power = np.einsum("ij,ij->i", blocks, blocks) / np.float32(size)
    return np.asarray(10 * np.log10(np.maximum(power.astype(np.float64), 10 ** (FLOOR_DB / 10))))


def rhythm_match(
    picture: Series, sound: Series, smallest_picture: float, smallest_sound: float = SMALLEST_SOUND_DB
) -> tuple[float | None, float | None]:
    """The match, -1..1, and the lag of the sound behind the picture in seconds, both None where nothing rises in one of them.

    ``picture`` and ``sound`` lie on one grid. The match is Pearson's correlation of the rises where they overlap, at the lag where
    it is highest; of equal ones, the smallest lag counts.
    """
    num_steps = min(picture.size, sound.size)
    if num_steps * STEP_SECONDS < MIN_SECONDS - 1e-9:
        return None, None
    seen, heard = _rises(picture[:num_steps]), _rises(sound[:num_steps])
    if seen.max() < smallest_picture or heard.max() < smallest_sound:
        return None, None
    best, best_lag = -2.0, 0
    for lag in sorted(range(-MAX_LAG_STEPS, MAX_LAG_STEPS + 1), key=abs):
        match = _correlation(
            seen[max(-lag, 0) : seen.size - max(lag, 0)], heard[max(lag, 0) : heard.size + min(lag, 0)]
        )
        if match is not None and match > best + 1e-9:
            best, best_lag = match, lag
    return (round(best, 4), round(best_lag * STEP_SECONDS, 3)) if best > -2.0 else (None, None)


def _rises(values: Series) -> Series:
    return np.asarray(np.maximum(values[RISE_STEPS:] - values[:-RISE_STEPS], 0.0))


def _correlation(one: Series, other: Series) -> float | None:
    one, other = one - one.mean(), other - other.mean()
    length = float(np.sqrt((one @ one) * (other @ other)))
    return float(np.clip((one @ other) / length, -1.0, 1.0)) if length > 1e-9 else None
