"""Pictures of the sea: waves on a beach, and under water."""

from __future__ import annotations

import math

import cv2
import numpy as np

from pipeline.synthetic import rhythm
from pipeline.synthetic.textures import (
    Colour,
    Floats,
    Image,
    Tile,
    Warp,
    add_light,
    below,
    coloured,
    column_gradient,
    eighths,
    fractal,
    generator,
    over,
    ramp,
    ridge_line,
    shaded,
    smoothstep,
    uniform_image,
)

# each: the sky's colours from top to horizon, the clouds' and the sun's colour, the sea's colours from far to near
_LIGHTS: tuple[tuple[tuple[Colour, ...], Colour, Colour, tuple[Colour, ...]], ...] = (
    (
        ((38, 56, 108), (150, 110, 140), (250, 176, 104)),
        (255, 190, 150),
        (255, 226, 160),
        ((206, 140, 98), (30, 50, 80)),
    ),
    (
        ((52, 118, 196), (120, 176, 224), (206, 228, 240)),
        (255, 255, 255),
        (255, 255, 244),
        ((120, 178, 200), (10, 74, 104)),
    ),
    (
        ((92, 104, 120), (140, 150, 160), (196, 200, 200)),
        (226, 228, 230),
        (230, 230, 224),
        ((140, 154, 158), (40, 66, 74)),
    ),
)

_RUN_UP_BEGINS, _RUN_UP_SHARE = 0.35, 0.3
"""The phase of a wave, of which 0.5 is the loudest, at which water begins to run up the beach, and for which share of the wave."""


class Ocean:
    """Waves run up a beach under drifting clouds and a low sun; a wave breaks and runs up at each :func:`rhythm.swell`."""

    def __init__(self, seed: int, height: int, width: int, seconds: float) -> None:
        rng = generator(seed, "ocean")
        self._seed, self._height, self._width = seed, height, width
        sky, self._cloud_colour, self._sun_colour, sea = _LIGHTS[seed % len(_LIGHTS)]
        self._horizon = round(height * rng.uniform(0.26, 0.5))
        self._make_sky(rng, sky)
        self._make_sea(rng, sea)
        self._make_beach(rng)
        self._surged = rhythm.Travelled(lambda times: 0.3 + 1.4 * rhythm.swell(seed, times), seconds)

    def _make_sky(self, rng: np.random.Generator, sky: tuple[Colour, ...]) -> None:
        height, width, horizon = self._height, self._width, self._horizon
        self._sky = column_gradient(horizon, width, [(0, sky[0]), (0.55, sky[1]), (1, sky[2])])
        self._sun_x = width * rng.uniform(0.15, 0.85)
        y, x = np.mgrid[:horizon, :width].astype(np.float32)
        sun_distance = np.hypot(x - self._sun_x, y - horizon * 0.66) / height
        sun = np.clip(1.1 * np.exp(-((sun_distance / 0.035) ** 4)) + 0.45 * np.exp(-sun_distance / 0.13), 0, 1)
        self._sky = add_light(self._sky, sun, self._sun_colour)
        self._clouds = Tile(fractal(rng, 256, 1024, slope=1.7, stretch=(2.6, 1.0)), horizon, width)
        self._cloud_rows = np.linspace(1.0, 0.25, horizon, dtype=np.float32)[:, None]
        self._cloud_layer = uniform_image(horizon, width, self._cloud_colour)

    def _make_sea(self, rng: np.random.Generator, sea: tuple[Colour, ...]) -> None:
        width, rows = self._width, self._height - self._horizon
        y, x = np.mgrid[:rows, :width].astype(np.float32)
        depth = 1.0 / (y / rows + 0.035)
        ground_x, ground_z = (x - width / 2) * depth * 0.9, depth * 150.0
        height_field = fractal(rng, 512, 512, slope=1.35, stretch=(1.0, 2.2))
        slope = np.diff(height_field, axis=0, append=height_field[:1])
        slope = 0.5 + slope / slope.std() / 8
        self._waves = Warp(slope, ground_x, ground_z), Warp(slope, ground_x * 1.9, ground_z * 1.9)
        self._wave_contrast = 0.25 + 0.75 * np.sqrt(y / rows)
        self._darkness = (0.12 + 0.62 * (y / rows) ** 0.7).astype(np.float32)
        foam: Colour = (236, 240, 240)
        middle = tuple((2 * a + 3 * b) // 5 for a, b in zip(sea[0], sea[1], strict=True))
        shadow = tuple(b * 2 // 3 for b in sea[1])
        stops = [(0, foam), (0.1, sea[0]), (0.45, middle), (0.8, sea[1]), (1, shadow)]
        self._sea_colours = ramp([(position, (c[0], c[1], c[2])) for position, c in stops])
        across = (x - self._sun_x) / (self._width * (0.035 + 0.16 * y / rows))
        self._sun_reflection = np.exp(-(across**2)) * (1.0 - 0.55 * y / rows)

    def _make_beach(self, rng: np.random.Generator) -> None:
        height, width = self._height, self._width
        rows = height - self._horizon
        sand = fractal(rng, rows, width, slope=0.8)
        tint = column_gradient(rows, width, [(0, (110, 92, 72)), (0.7, (128, 108, 84)), (1, (178, 154, 120))])
        self._sand = shaded(tint * (0.82 + 0.36 * sand[..., None]))
        self._lace = Tile(np.abs(fractal(rng, 512, 1024, slope=1.25, stretch=(1.6, 1)) - 0.5) * 5.0, rows, width)
        self._edge = Tile(ridge_line(rng, 4 * width, 1.3)[None, :], 1, width)
        self._rows = np.arange(rows, dtype=np.float32)[:, None]
        self._foam_layer = uniform_image(rows, width, (240, 243, 244))
        self._wave_front_layer = uniform_image(rows, width, (24, 60, 66))

    def _water(self, t: float) -> Image:
        surged = self._surged(t)
        slopes = self._waves[0].at(6 * surged, 22 * surged) + self._waves[1].at(-9 * surged, 31 * surged) - 1.0
        water = coloured(np.clip(self._darkness - 0.68 * slopes * self._wave_contrast, 0.06, 1), self._sea_colours)
        return add_light(water, smoothstep(slopes, 0.09, 0.3) * self._sun_reflection, self._sun_colour)

    def _surf(self, water: Image, t: float) -> Image:
        rows = len(self._rows)
        swell, phase = float(rhythm.swell(self._seed, t)), float(rhythm.wave_phase(self._seed, t)) % 1.0
        run_up = _run_up(phase)
        edge_row = rows * (0.71 + 0.2 * run_up) + rows * 0.035 * self._edge.at(18 * t, 0)
        px_inside = edge_row - self._rows
        lace = self._lace.at(5 * t, rows * 0.2 * (1 - run_up))
        foam = np.exp(-np.maximum(px_inside, 0) / (rows * (0.03 + 0.07 * swell))) * (1.25 - lace)
        tumbling = self._lace.at(5 * t, -70 * self._surged(t))
        crest_row = rows * (0.3 + 0.34 * phase) - rows * 0.05 * self._edge.at(9 * t + self._width, 0)
        from_crest = (self._rows - crest_row) / (rows * (0.03 + 0.05 * swell))
        breaking = (
            np.exp(-np.abs(from_crest) * np.where(from_crest < 0, 3.0, 1.0)) * (1.15 - 0.9 * tumbling) * swell**1.5
        )
        wave_front = np.exp(-((from_crest - 1.2) ** 2)) * 0.35 * swell
        water = over(water, self._wave_front_layer, wave_front)
        water = over(water, self._foam_layer, np.clip(1.1 * breaking + foam, 0, 0.95))
        return over(self._sand, water, np.clip(px_inside / 2 + 0.5, 0, 1))

    def __call__(self, t: float) -> Image:
        cover = smoothstep(self._clouds.at(7 * t, 0), 0.48, 0.78) * self._cloud_rows
        sky = over(self._sky, self._cloud_layer, 0.75 * cover)
        return np.concatenate([sky, self._surf(self._water(t), t)])


def _run_up(phase: float) -> float:
    """How far the water has run up the beach, 0..1, at a phase of its wave, 0..1: fast up while it roars, slowly back."""
    since = (phase - _RUN_UP_BEGINS) % 1.0
    share = since / _RUN_UP_SHARE if since < _RUN_UP_SHARE else (1.0 - since) / (1.0 - _RUN_UP_SHARE)
    return share * share * (3 - 2 * share)


class Underwater:
    """An underwater scene: shafts of light, swaying kelp, caustics on the sand, and rising bubbles."""

    def __init__(self, seed: int, height: int, width: int, seconds: float) -> None:
        rng = generator(seed, "underwater")
        self._height, self._width = height, width
        hue = rng.uniform(0.0, 1.0)
        surface: Colour = (round(70 + 40 * hue), 196, round(196 + 20 * (1 - hue)))
        self._water = column_gradient(
            height, width, [(0, surface), (0.35, (24, 128, 160)), (0.8, (8, 62, 100)), (1, (6, 44, 76))]
        )
        self._make_shafts(rng)
        self._make_floor(rng)
        # x in pixels, height at the start and speed in picture heights, radius in pixels, phase
        self._bubbles = [
            (
                rng.uniform(0, width),
                rng.uniform(0, 1),
                rng.uniform(0.10, 0.28),
                rng.uniform(1.2, 4.5),
                rng.uniform(0, 7),
            )
            for _ in range(46)
        ]
        # x in pixels, length in picture heights, phase
        self._kelp = [
            (width * x, rng.uniform(0.3, 0.62), rng.uniform(0, 6)) for x in (0.05, 0.1, 0.16, 0.84, 0.93, 0.97)
        ]

    def _make_shafts(self, rng: np.random.Generator) -> None:
        height, width = self._height, self._width
        y, x = np.mgrid[:height, :width].astype(np.float32)
        source_x, source_y = width * rng.uniform(0.35, 0.65), -0.45 * height
        angle = np.arctan2(x - source_x, y - source_y)
        self._shaft_index = ((angle + math.pi) * 170 * 8).astype(np.int32)
        self._shafts = Tile(np.tile(fractal(rng, 64, 512, slope=1.1), (1, 3)), 1, 1072)
        self._shaft_strength = (np.exp(-1.7 * y / height) * np.exp(-((angle / 0.75) ** 2))).astype(np.float32)

    def _make_floor(self, rng: np.random.Generator) -> None:
        height, width = self._height, self._width
        line = height * 0.8 + height * 0.06 * ridge_line(rng, width)
        self._floor_alpha = below(line, height, 3)
        rough = fractal(rng, height, width, slope=1.2)
        floor = column_gradient(height, width, [(0, (20, 80, 104)), (0.78, (28, 92, 108)), (1, (92, 140, 128))])
        self._floor = shaded(floor * (0.7 + 0.6 * rough[..., None]))
        self._floor_top = round(height * 0.72)
        rows = np.arange(self._floor_top, height, dtype=np.float32)[:, None] / height
        depth = 1.0 / (rows - 0.62)
        x = (np.arange(width, dtype=np.float32)[None, :] - width / 2) * depth * 0.3
        z = np.repeat(depth * 40, width, axis=1)
        self._caustic_fields = [Warp(fractal(rng, 256, 256, slope=1.5), x, z) for _ in range(2)]
        self._caustic_strength = self._floor_alpha[self._floor_top :] * smoothstep(rows, 0.74, 1.0)

    def _caustics(self, t: float) -> Floats:
        """Brightness of the sea floor, 0..1: bright lines where two moving noise fields are equal."""
        a, b = self._caustic_fields[0].at(9 * t, 11 * t), self._caustic_fields[1].at(-9 * t, 11 * t)
        return np.asarray(np.clip(1.0 - 9.0 * np.abs(a - b), 0, 1) * self._caustic_strength)

    def __call__(self, t: float) -> Image:
        profile = np.repeat(smoothstep(self._shafts.at(5 * t, 5 * t)[0], 0.42, 0.85), 8)
        smooth_profile = np.convolve(profile, np.full(9, 1 / 9, np.float32), mode="same")
        shafts = np.take(smooth_profile, self._shaft_index) * self._shaft_strength
        picture = add_light(self._water, shafts, (120, 180, 156))
        picture = over(picture, self._floor, self._floor_alpha)
        floor = picture[self._floor_top :]
        floor[:] = add_light(floor, self._caustics(t), (94, 140, 121))
        self._draw_kelp(picture, t)
        self._draw_bubbles(picture, t)
        return picture

    def _draw_kelp(self, picture: Image, t: float) -> None:
        height = self._height
        up = np.linspace(0, 1, 14)
        for x, length, phase in self._kelp:
            sway = np.sin(1.3 * t + phase + 3.0 * up) * up * 0.05 * height
            stem = np.stack([x + sway, height * (1.0 - length * up)], axis=-1)
            leaf = np.stack(
                [0.035 * height * (1.2 + np.sin(9 * up + t)) * (1.1 - up), np.full(14, -0.05 * height)], axis=-1
            )
            ribs = [np.stack([stem, stem + leaf * (side, 1)], axis=1) for side in (-1, 1)]
            lines = np.concatenate([*ribs, np.stack([stem[:-1], stem[1:]], axis=1)])
            cv2.polylines(picture, list((lines * 8).round().astype(np.int32)), False, (12, 58, 56), 2, cv2.LINE_AA, 3)

    def _draw_bubbles(self, picture: Image, t: float) -> None:
        for x, start, speed, radius_px, phase in self._bubbles:
            up = (start + speed * t) % 1.15
            centre = np.array([x + 5 * math.sin(3 * t + phase), self._height * (1.05 - up)])
            radius = round(8 * radius_px * (0.7 + 0.5 * up) * self._height / 270)  # in eighths of a pixel
            cv2.circle(picture, eighths(centre), radius, (150, 222, 226), 1, cv2.LINE_AA, 3)
            cv2.circle(picture, eighths(centre - radius / 24), max(radius // 4, 2), (226, 250, 250), -1, cv2.LINE_AA, 3)
