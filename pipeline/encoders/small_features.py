"""What the packaged pair looks at and listens to: colour, layout and texture of a frame; the shape of a mel and how it moves.

Statistics, not weights: they carry over from the few hundred pictures and sounds that the pair learned from. Nothing here
depends on loudness, exposure time or the size of the picture.

Shape suffixes: H height, W width, M mel bands, T mel frames, F features.
"""

from __future__ import annotations

import functools
import itertools

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.mel import MelConfig

Floats = NDArray[np.float32]

SHORT_SIDE_PX = 128
"""Frames are brought to this size: all features are of structures that survive it."""
NUM_ROWS = 3
"""Bands of the picture from top to bottom (sky, middle, ground), and columns where a grid is meant."""
NUM_LEVELS = 4
"""Octaves of detail: each halves the picture."""

SOUND_MEL = MelConfig()
BAND_STARTS = (0, 2, 4, 6, 8, 10, 13, 16, 19, 22, 26, 30, 34, 38, 43, 48, 53, 58, 64, 70, 76, 82, 88, 94, 100)
"""First mel band of each group of bands; the last group ends at MAX_BAND."""
MAX_BAND = 106
"""Bands from here on (about 9 kHz) are left out: what is there tells the codec and the microphone, not the class."""
ENVELOPE_GROUPS = 5
MODULATION_EDGES_HZ = (0.3, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 43.0)
FLOOR_DB = 80.0


# pictures


def picture_features(frame_HW3: NDArray[np.uint8]) -> Floats:
    """(F,) float32 of an RGB frame of any size."""
    height, width = frame_HW3.shape[:2]
    scale = SHORT_SIDE_PX / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(frame_HW3, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    lab = np.asarray(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32) / np.float32(100)
    light, red, blue = (np.ascontiguousarray(lab[..., index]) for index in range(3))
    chroma: Floats = np.sqrt(red**2 + blue**2)
    parts = [
        *_layout(light, red, blue, chroma),
        *_colours(light, red, blue, chroma),
        *_detail(light),
        *_edges(light),
        *_patterns(light),
    ]
    return np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)


def _rows(plane: Floats, count: int = NUM_ROWS) -> list[Floats]:
    ends = [round(index * plane.shape[0] / count) for index in range(count + 1)]
    return [plane[start:end] for start, end in itertools.pairwise(ends)]


def _layout(light: Floats, red: Floats, blue: Floats, chroma: Floats) -> list[Floats]:
    """Where it is light, dark, coloured and busy: means over grids, and how each row of the picture varies."""
    grids = [cv2.resize(plane, (3, 4), interpolation=cv2.INTER_AREA) for plane in (light, red, blue, chroma)]
    square = cv2.resize(light**2, (3, 4), interpolation=cv2.INTER_AREA)
    spread = np.sqrt(np.maximum(square - grids[0] ** 2, 0))
    middle = grids[0].mean()
    profile = cv2.resize(light, (1, 10), interpolation=cv2.INTER_AREA)
    across = np.asarray([row.mean(0).std() for row in _rows(light)])
    down = np.asarray([row.mean(1).std() for row in _rows(light)])
    return [*grids, spread, profile - middle, np.diff(profile, axis=0), across, down]


def _colours(light: Floats, red: Floats, blue: Floats, chroma: Floats) -> list[Floats]:
    """Histograms, as square roots of shares: of lightness, hue, chroma and both colour axes, whole and by rows."""
    hue = ((np.arctan2(blue, red) / (2 * np.pi)) % 1.0).astype(np.float32)
    whole = [
        _shares(light, 10, 0, 1),
        _shares(chroma, 8, 0, 0.8),
        _shares(hue, 12, 0, 1, chroma),
    ]
    across = np.clip((red + 0.4) * 5, 0, 4).astype(np.intp)
    down = np.clip((blue + 0.6) * 5, 0, 5).astype(np.intp)
    joint = np.bincount((across * 6 + down).ravel(), minlength=30)
    by_row = [
        _shares(hue_row, 8, 0, 1, chroma_row) for hue_row, chroma_row in zip(_rows(hue), _rows(chroma), strict=True)
    ]
    tails = np.quantile(light, (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98))
    extremes = np.asarray([(light < 0.08).mean(), (light > 0.95).mean(), (chroma < 0.05).mean(), (chroma > 0.5).mean()])
    hot = np.asarray([((red > 0.15) & (blue > 0.2) & (light > 0.4)).mean()]) ** 0.5
    return [*whole, np.sqrt(joint / light.size), *by_row, tails, np.sqrt(extremes), hot]


def _shares(values: Floats, bins: int, low: float, high: float, weights: Floats | None = None) -> Floats:
    index = np.clip((values - low) * (bins / (high - low)), 0, bins - 1).astype(np.intp).ravel()
    counts = np.bincount(index, None if weights is None else weights.ravel(), bins)
    return np.asarray(np.sqrt(counts / max(values.size * 0.05, counts.sum())), np.float32)


def _detail(light: Floats) -> list[Floats]:
    """For each octave and each row: how strong its detail is, against the contrast, how sparse, and which way it runs."""
    parts = []
    plane = light
    for _ in range(NUM_LEVELS):
        low = cv2.GaussianBlur(plane, (5, 5), 0)
        fine = plane - low
        upright, level = np.abs(np.diff(plane, axis=1)), np.abs(np.diff(plane, axis=0))
        strength = [np.log(np.abs(row).mean() + 1e-4) for row in _rows(fine)]
        sparse = [np.log((row * row).mean() + 1e-7) - 2 * np.log(np.abs(row).mean() + 1e-4) for row in _rows(fine)]
        lean = [
            np.log((one.mean() + 1e-4) / (other.mean() + 1e-4))
            for one, other in zip(_rows(upright), _rows(level), strict=True)
        ]
        skew = (fine * fine * fine).mean() / ((fine * fine).mean() + 1e-6) ** 1.5
        parts.append(np.asarray([*strength, *sparse, *lean, np.clip(skew, -4, 4)], np.float32))
        plane = np.ascontiguousarray(low[::2, ::2])
    slopes = np.diff(np.stack(parts)[:, :NUM_ROWS], axis=0)
    return [*parts, slopes]


def _edges(light: Floats) -> list[Floats]:
    """Shares of eight directions of the gradient, for two octaves and each row."""
    parts = []
    plane = light
    for _ in range(2):
        across = cv2.Sobel(plane, cv2.CV_32F, 1, 0)
        down = cv2.Sobel(plane, cv2.CV_32F, 0, 1)
        strength: Floats = np.asarray(np.sqrt(across**2 + down**2), np.float32)
        angle: Floats = np.asarray((np.arctan2(down, across) / np.pi) % 1.0, np.float32)
        parts += [
            _shares(angle_row, 8, 0, 1, strength_row)
            for angle_row, strength_row in zip(_rows(angle), _rows(strength), strict=True)
        ]
        plane = np.ascontiguousarray(cv2.GaussianBlur(plane, (5, 5), 0)[::2, ::2])
    return parts


@functools.cache
def _pattern_table() -> NDArray[np.intp]:
    """Of the 256 local binary patterns of 8 neighbours, the rotation-invariant uniform class, 0..9 (Ojala et al., 2002)."""
    table = np.empty(256, np.intp)
    for code in range(256):
        bits = [(code >> place) & 1 for place in range(8)]
        changes = sum(bits[place] != bits[place - 1] for place in range(8))
        table[code] = sum(bits) if changes <= 2 else 9
    return table


def _patterns(light: Floats) -> list[Floats]:
    """Histograms of local binary patterns at two distances, after a slight blur; what is flat falls in the last class."""
    smooth = cv2.GaussianBlur(light, (3, 3), 0)
    parts = []
    for step in (1, 3):
        height, width = smooth.shape[0] - 2 * step, smooth.shape[1] - 2 * step
        if min(height, width) < 1:
            parts.append(np.zeros(10, np.float32))
            continue
        centre = smooth[step : step + height, step : step + width]
        code = np.zeros((height, width), np.uint8)
        for place, (dy, dx) in enumerate(((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))):
            other = smooth[dy * step : dy * step + height, dx * step : dx * step + width]
            code |= (other > centre + 0.004).astype(np.uint8) << place
        counts = np.bincount(_pattern_table()[code].ravel(), minlength=10)
        parts.append(np.sqrt(counts / code.size).astype(np.float32))
    return parts


# sounds


def sound_features(mel_MT: Floats) -> Floats:
    """(F,) float32 of a mel 0..1 (:class:`pipeline.encoders.mel.LogMel`) of any length."""
    decibels = (mel_MT[:MAX_BAND] - 1) * FLOOR_DB
    power = 10 ** (decibels / 10)
    grouped = np.add.reduceat(power, BAND_STARTS, axis=0) / np.diff([*BAND_STARTS, MAX_BAND])[:, None]
    loud = np.maximum(10 * np.log10(grouped + 1e-8), -FLOOR_DB)
    parts = [*_spectrum(loud, grouped), *_movement(loud), *_modulation(loud), *_tonality(decibels)]
    return np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)


def _spectrum(loud: Floats, power: Floats) -> list[Floats]:
    """Level and spread of every group of bands, dB, about the mean level; its quiet and loud parts; centroids."""
    mean_power = 10 * np.log10(power.mean(1) + 1e-8)
    level = loud.mean(1)
    middle = level.mean()
    quantiles = np.quantile(loud, (0.1, 0.5, 0.9, 0.98), axis=1)
    share = power / (power.sum(0) + 1e-12)
    centre = (share * np.arange(len(power))[:, None]).sum(0)
    width = np.sqrt((share * (np.arange(len(power))[:, None] - centre) ** 2).sum(0))
    shape = np.asarray([centre.mean(), centre.std(), width.mean(), width.std()]) * 3
    return [level - middle, mean_power - mean_power.mean(), loud.std(1), (quantiles[[0, 2, 3]] - quantiles[1]), shape]


def _steps(values: Floats, lag: int) -> Floats:
    lag = min(lag, values.shape[1] - 1)
    return values[:, lag:] - values[:, : values.shape[1] - lag]


def _movement(loud: Floats) -> list[Floats]:
    """How fast levels change at several lags, how suddenly they rise, and how much the bands rise together."""
    parts: list[Floats] = []
    groups = np.stack([part.mean(0) for part in np.array_split(loud, ENVELOPE_GROUPS)])
    for lag in (1, 2, 4, 10, 30, 90):
        steps = _steps(groups, lag)
        parts.append(np.abs(steps).mean(1))
        if lag in (1, 4):
            up = np.maximum(steps, 0)
            parts += [np.quantile(up, 0.99, axis=1), (steps > 6).mean(1) * 30, (steps > 12).mean(1) * 60]
    whole = loud.mean(0)
    each = loud.std(1).mean() + 1e-3
    together = np.asarray([whole.std() / each])
    centred = groups - groups.mean(1, keepdims=True)
    deviation = centred.std(1) + 0.1
    correlation = (centred @ centred.T) / centred.shape[1] / (deviation[:, None] * deviation)
    moments = [(centred**3).mean(1) / deviation**3, np.log1p((centred**4).mean(1) / deviation**4)]
    return [*parts, together * 10, correlation[np.triu_indices(len(groups), 1)] * 5, np.clip(np.stack(moments), -8, 8)]


def _modulation(loud: Floats) -> list[Floats]:
    """Shares of slow and fast modulation of each group's level: waves, gusts and drops have times of their own."""
    groups = np.stack([part.mean(0) for part in np.array_split(loud, ENVELOPE_GROUPS)])
    groups = np.concatenate([groups, loud.mean(0, keepdims=True)])
    length = groups.shape[1]
    centred = (groups - groups.mean(1, keepdims=True)) * np.hanning(length + 2)[1:-1]
    spectrum = np.abs(np.fft.rfft(centred, n=max(length, 256))) ** 2 / length
    hz = np.fft.rfftfreq(max(length, 256), SOUND_MEL.hop_size / SOUND_MEL.sample_rate_hz)
    edges = np.searchsorted(hz, MODULATION_EDGES_HZ)
    bands = np.stack([spectrum[:, a : max(b, a + 1)].mean(1) for a, b in itertools.pairwise(edges)])
    return [np.asarray(10 * np.log10(bands + 1e-3), np.float32)]


def _tonality(decibels: Floats) -> list[Floats]:
    """How far single bands stand out of their neighbours (birds, crickets, howls), in time's mean and at moments."""
    smooth = cv2.blur(decibels, (1, 9), borderType=cv2.BORDER_REPLICATE)
    above = decibels - smooth
    parts = np.array_split(above, ENVELOPE_GROUPS)
    steady = [np.abs(part.mean(1)).mean() for part in parts]
    peaks = [np.quantile(part, 0.98) for part in parts]
    rough = [part.std() for part in parts]
    return [np.asarray([*steady, *peaks, *rough], np.float32)]
