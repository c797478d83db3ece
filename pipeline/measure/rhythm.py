"""Agreement in time: whether the sound rises when the picture moves or brightens, and how much later.

All series are on one grid with steps of 0.1 s. Each is turned into its rises: the increase over the value 0.2 s before, or 0 if
there is none. The rises of the sound are correlated with those of the picture at every lag of at most 1 s:

    light   ____|‾‾‾|_________|‾‾‾|____        rises   ____|_____________|_______
    sound   ________|‾‾‾|_________|‾‾‾|        rises   ________|_____________|___      lag 0.4 s, match near 1

In one second sound travels 340 m. Thunder from farther away is not detected: with more lags, unrelated series would match as well as
related ones. The best match of unrelated series, in clips of ten seconds, is 0.2 to 0.35 on average, and in one of twenty pairs
above 0.35 (noise), 0.6 (a few single events) or 0.8 (slow swells). In shorter clips it is higher.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

STEP_SECONDS = 0.1
RISE_STEPS = 2
"""A rise is the increase over this many steps: the distance of the frames that motion compares."""
MAX_LAG_STEPS = 10
MIN_SECONDS = 3.0
"""Shortest clip that is measured: of a shorter one too little overlaps at the largest lag."""
FLOOR_DB = -60.0
"""Lowest level of the sound: quieter sound counts as silence."""
SMALLEST_LIGHT, SMALLEST_MOTION, SMALLEST_SOUND_DB = 0.5, 0.5, 1.5
"""A series has rises if its largest rise reaches this (luma 0..255, its change in 0.2 s, decibels). The noise of an encoder and the
level of steady noise stay below."""

Series = npt.NDArray[np.float64]


def on_grid(seconds: Series, values: Series, start: float, end: float) -> Series:
    """Mean of the values in every step of ``[start, end)``, shape (steps,). A step without a value has that of the step before.

    Values that are nan are ignored. The steps before the first value have the first value.
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
    """RMS level of every step in dB full scale, at least FLOOR_DB, shape (steps,)."""
    size = round(STEP_SECONDS * sample_rate_hz)
    blocks = mono[: mono.size // size * size].reshape(-1, size)
    power = np.einsum("ij,ij->i", blocks, blocks) / np.float32(size)
    return np.asarray(10 * np.log10(np.maximum(power.astype(np.float64), 10 ** (FLOOR_DB / 10))))


def rhythm_match(
    picture: Series, sound: Series, smallest_picture: float, smallest_sound: float = SMALLEST_SOUND_DB
) -> tuple[float | None, float | None]:
    """The match, -1..1, and the lag of the sound after the picture in seconds. Both are None if one of the series has no rises.

    ``picture`` and ``sound`` are on one grid. The match is Pearson's correlation of the overlapping rises at the lag where it is
    highest; of equal ones, the smallest lag is used. ``smallest_picture``, ``smallest_sound``: see :data:`SMALLEST_LIGHT`.
    """
    num_steps = min(picture.size, sound.size)
    if num_steps * STEP_SECONDS < MIN_SECONDS - 1e-9:
        return None, None
    picture_rises, sound_rises = _rises(picture[:num_steps]), _rises(sound[:num_steps])
    if picture_rises.max() < smallest_picture or sound_rises.max() < smallest_sound:
        return None, None
    num_rises = picture_rises.size
    best, best_lag = -2.0, 0
    for lag in sorted(range(-MAX_LAG_STEPS, MAX_LAG_STEPS + 1), key=abs):
        match = _correlation(
            picture_rises[max(-lag, 0) : num_rises - max(lag, 0)], sound_rises[max(lag, 0) : num_rises + min(lag, 0)]
        )
        if match is not None and match > best + 1e-9:
            best, best_lag = match, lag
    return (round(best, 4), round(best_lag * STEP_SECONDS, 3)) if best > -2.0 else (None, None)


def _rises(values: Series) -> Series:
    return np.asarray(np.maximum(values[RISE_STEPS:] - values[:-RISE_STEPS], 0.0))


def _correlation(one: Series, other: Series) -> float | None:
    """Pearson's correlation. None: one of them is constant."""
    one, other = one - one.mean(), other - other.mean()
    length = float(np.sqrt((one @ one) * (other @ other)))
    return float(np.clip((one @ other) / length, -1.0, 1.0)) if length > 1e-9 else None
