"""Pictures of a thunderstorm."""

from __future__ import annotations

import math

import cv2
import numpy as np

from pipeline.synthetic import rhythm
from pipeline.synthetic.fresh import Streaks, conifers
from pipeline.synthetic.textures import (
    Colour,
    Floats,
    Image,
    Tile,
    add_light,
    below,
    coloured,
    fractal,
    generator,
    over,
    ramp,
    ridge_line,
    uniform_image,
)

# palettes of the clouds, from dark to light: at night, at sunset, before hail
_STORMS: tuple[tuple[tuple[float, Colour], ...], ...] = (
    ((0, (16, 18, 30)), (0.45, (50, 54, 76)), (0.75, (92, 96, 120)), (1, (150, 152, 172))),
    ((0, (34, 22, 24)), (0.45, (104, 70, 70)), (0.75, (164, 116, 112)), (1, (216, 170, 164))),
    ((0, (18, 30, 30)), (0.45, (62, 86, 82)), (0.75, (112, 136, 126)), (1, (176, 194, 184))),
)


class Thunder:
    """A thunderstorm over hills at dusk: rain, and bolts at the times of :func:`rhythm.strikes`."""

    def __init__(self, seed: int, height: int, width: int, seconds: float) -> None:
        rng = generator(seed, "thunder")
        self._height, self._width = height, width
        self._strikes = rhythm.strikes(seed, seconds)
        self._clouds = Tile(fractal(rng, 256, 512, slope=1.7, stretch=(1.8, 1.0)), height, width)
        self._colours = ramp(_STORMS[seed % len(_STORMS)])
        rows = np.linspace(0, 1, height, dtype=np.float32)[:, None]
        self._lift = (0.16 * np.exp(-(((rows - 0.72) / 0.2) ** 2)) - 0.1 * (1 - rows)).astype(np.float32)
        self._horizon = height * rng.uniform(0.78, 0.84)
        base = self._horizon - height * 0.08 * ridge_line(rng, width, 1.2)
        self._land = uniform_image(height, width, (8, 11, 13))
        trees = uniform_image(height, width, (0, 0, 0))
        conifers(rng, trees, base, height * 0.1, (255, 255, 255))
        self._land_alpha = np.maximum(below(base, height, 2), trees[..., 0] / np.float32(255)).astype(np.float32)
        self._streaks = Streaks(rng, height, width, slant=0.22, light=0.55)
        self._bolts = [self._bolt(rng, strike) for strike in self._strikes]

    def _bolt(self, rng: np.random.Generator, strike: rhythm.Strike) -> tuple[Floats, Floats]:
        """The light of the bolt, and that of the clouds around it, each (height, width), 0..1."""
        height, width = self._height, self._width
        bolt = np.zeros((height, width), np.float32)
        start = np.array([strike.across * width, -4.0])
        end = np.array([strike.across * width + rng.normal(0, 0.12) * width, self._horizon])
        stem = _jagged_line(rng, start, end, 0.22)
        lines = [(stem, 2, 1.0)]
        for _ in range(5):
            fork = stem[rng.integers(len(stem) // 6, len(stem) * 3 // 4)]
            tip = fork + np.array([rng.normal(0, 0.16) * width, rng.uniform(0.1, 0.3) * height])
            lines.append((_jagged_line(rng, fork, tip, 0.25), 1, 0.7))
        for line, thickness_px, brightness in lines:
            cv2.polylines(bolt, [(line * 8).round().astype(np.int32)], False, brightness, thickness_px, cv2.LINE_AA, 3)
        halo = cv2.GaussianBlur(bolt, (0, 0), height / 90) * 1.6 + cv2.GaussianBlur(bolt, (0, 0), height / 22) * 1.4
        y, x = np.mgrid[:height, :width].astype(np.float32)
        cloud_light = 0.12 + 0.88 * np.exp(-np.hypot((x - start[0]) / 1.5, (y - 0.12 * height)) / (0.42 * height))
        return np.clip(bolt + halo, 0, 1), cloud_light.astype(np.float32)

    def __call__(self, t: float) -> Image:
        clouds = 0.5 * (self._clouds.at(14 * t, 3 * t) + self._clouds.at(-9 * t + 200, 90 - 5 * t)) + self._lift
        field = np.clip(0.4 + 2.0 * (clouds - 0.5), 0, 1)
        ages = [t - strike.flash_seconds for strike in self._strikes]
        lit = [
            (*lights, age, strike.strength)
            for lights, age, strike in zip(self._bolts, ages, self._strikes, strict=True)
            if 0 <= age < rhythm.FLASH_SECONDS
        ]
        for _, cloud_light, age, strength in lit:
            field = field + cloud_light * (max(_flash(age), _glow(age)) * strength * 0.45) * (0.35 + clouds)
        picture = coloured(np.clip(field, 0, 1), self._colours)
        for bolt_light, _, age, strength in lit:
            if _flash(age) > 0.01:
                picture = add_light(picture, bolt_light * (_flash(age) * strength), (222, 226, 255))
        return self._streaks.on(over(picture, self._land, self._land_alpha), t)


def _flash(age_seconds: float) -> float:
    """Brightness of a bolt, 0..1: two strokes, 0.2 s apart, that fade exponentially."""
    second_stroke = math.exp(-(age_seconds - 0.2) / 0.14) if age_seconds >= 0.2 else 0.0
    return max(math.exp(-age_seconds / 0.09), 0.85 * second_stroke)


def _glow(age_seconds: float) -> float:
    """Light inside the clouds while the thunder rolls, 0..1: it fades to nothing in ``rhythm.FLASH_SECONDS``."""
    return 0.9 * math.exp(-age_seconds / 0.9) * (1 - age_seconds / rhythm.FLASH_SECONDS)


def _jagged_line(rng: np.random.Generator, start: Floats, end: Floats, roughness: float) -> Floats:
    """Points (65, 2) from ``start`` to ``end``, by six rounds of midpoint displacement.

    ``roughness``: the largest displacement of a midpoint, as a share of its segment's length.
    """
    points = np.stack([start, end])
    for _ in range(6):
        segments = np.diff(points, axis=0)
        normals = np.stack([-segments[:, 1], segments[:, 0]], axis=-1)
        offsets = normals * rng.uniform(-roughness, roughness, (len(segments), 1))
        midpoints = points[:-1] + segments / 2 + offsets
        points = np.concatenate([np.stack([points[:-1], midpoints], axis=1).reshape(-1, 2), points[-1:]])
    return points
