"""Pictures of fire, and of wind over a wheat field."""

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


class Fire:
    """A wood fire at night: flames that follow :func:`rhythm.draught` and leap at a crackle, glowing logs, and rising sparks."""

    def __init__(self, seed: int, height: int, width: int, seconds: float) -> None:
        rng = generator(seed, "fire")
        self._height, self._width = height, width
        self._centre, self._base = width * rng.uniform(0.28, 0.72), height * 0.84
        self._ground = self._paint_ground(rng)
        self._flames = ramp(
            [
                (0, (0, 0, 0)),
                (0.12, (40, 4, 0)),
                (0.34, (190, 40, 4)),
                (0.58, (252, 140, 18)),
                (0.8, (255, 220, 90)),
                (1, (255, 252, 220)),
            ]
        )
        rows, columns = height * 2 // 3, width * 2 // 3
        y, x = np.mgrid[:rows, :columns].astype(np.float32) * 1.5
        self._up = ((self._base - y) / (0.78 * height)).astype(np.float32)
        self._aside = ((x - self._centre) / (height * rng.uniform(0.3, 0.42))).astype(np.float32)
        self._large_flames = Warp(fractal(rng, 256, 256, slope=1.35, stretch=(1.5, 1.0)), x * 0.55, y * 0.5)
        self._small_flames = Warp(fractal(rng, 256, 256, slope=1.1, stretch=(1.8, 1.0)), x * 0.9, y * 0.8)
        self._logs, self._log_alpha = self._paint_logs(rng)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        distance = np.hypot((x - self._centre) / 1.7, y - self._base + 0.02 * height) / height
        self._log_heat = self._log_alpha * np.exp(-((distance / 0.09) ** 2))
        self._embers = Tile(fractal(rng, 256, 512, slope=1.0), height, width)
        self._seed = seed
        self._crackles = rhythm.crackles(seed, seconds)
        self._risen = rhythm.Travelled(lambda times: 0.3 + 1.4 * rhythm.draught(seed, times), seconds)
        # height at the start and speed, as shares of the way up; drift in picture heights, phase
        self._sparks = [
            (rng.uniform(0, 1), rng.uniform(0.25, 0.6), rng.normal(0, 0.12), rng.uniform(0, 7)) for _ in range(60)
        ]

    def _paint_ground(self, rng: np.random.Generator) -> Image:
        height, width = self._height, self._width
        picture = column_gradient(
            height, width, [(0, (6, 8, 18)), (0.7, (14, 12, 18)), (0.72, (26, 18, 14)), (1, (34, 24, 16))]
        )
        y, x = np.mgrid[:height, :width].astype(np.float32)
        distance = np.hypot((x - self._centre) / 1.6, (y - self._base) * 1.3) / height
        firelight = (
            np.exp(-distance / 0.22)
            * (0.5 + fractal(rng, height, width, slope=0.9))
            * smoothstep(y, 0.7 * height, 0.74 * height)
        )
        self._glow = np.exp(-np.hypot(x - self._centre, y - 0.6 * height) / (0.3 * height)).astype(np.float32)
        return add_light(picture, np.clip(firelight, 0, 1), (190, 96, 40))

    def _paint_logs(self, rng: np.random.Generator) -> tuple[Image, Floats]:
        """The logs, and their alpha."""
        height, width = self._height, self._width
        logs, alpha = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
        for angle in (-0.42, 0.38, -0.16, 0.22, 0.03):
            half_length = height * rng.uniform(0.24, 0.33)
            middle = np.array(
                [self._centre + rng.uniform(-0.1, 0.1) * height, self._base + rng.uniform(0.0, 0.05) * height]
            )
            half_log = half_length * np.array([math.cos(angle), math.sin(angle)])
            for layer, colour in enumerate(((22, 14, 10), (44, 28, 18), (62, 40, 26))):
                ends = eighths(middle - half_log - (0, 2 * layer)), eighths(middle + half_log - (0, 2 * layer))
                thickness_px = round(height * (0.065 - 0.02 * layer))
                cv2.line(logs, *ends, colour, thickness_px, cv2.LINE_AA, 3)
                cv2.line(alpha, *ends, 255, thickness_px, cv2.LINE_AA, 3)
        rough = 0.6 + 0.8 * fractal(rng, height, width, slope=0.9, stretch=(1, 3))[..., None]
        return shaded(logs * rough), alpha.astype(np.float32) / 255

    def _strength(self, t: float) -> float:
        """How strongly it burns: 1 on average, 0.5 to about 2."""
        leap = sum(crackle.strength * _leap(t - crackle.seconds) for crackle in self._crackles)
        return 0.5 + 0.8 * float(rhythm.draught(self._seed, t)) + 0.6 * min(leap, 1.0)

    def _heat(self, t: float, strength: float) -> Floats:
        """Heat of the flames, 0..1: a cone that noise bends and roughens."""
        risen = self._risen(t)
        large_flames, small_flames = self._large_flames.at(0, 150 * risen), self._small_flames.at(11 * t, 260 * risen)
        up = self._up * np.float32(1 / (0.3 + 0.7 * strength))
        raised = np.maximum(up, 0)
        lean = self._aside + (large_flames - 0.5) * 1.5 * raised
        body = 1.12 - np.maximum(up, -0.4 * up) * 1.15 - np.abs(lean) * (0.75 + 0.9 * raised)
        heat = body + (small_flames - 0.5) * 1.1 * (0.35 + raised) + (large_flames - 0.5) * 0.5
        return np.asarray(np.clip(heat * 1.15, 0, 1) * smoothstep(self._up, -0.13, 0.03))

    def __call__(self, t: float) -> Image:
        strength = self._strength(t)
        flicker = 0.34 * strength + 0.05 * math.sin(11 * t) + 0.04 * math.sin(17.3 * t + 1) + 0.03 * math.sin(29 * t)
        picture = add_light(self._ground, self._glow * flicker, (255, 120, 40))
        flames = cv2.resize(coloured(self._heat(t, strength), self._flames), (self._width, self._height))
        embers = smoothstep(self._embers.at(3 * t, 0), 0.46, 0.85) * self._log_heat * (0.6 + flicker)
        picture = over(np.asarray(cv2.add(picture, flames), dtype=np.uint8), self._logs, 0.86 * self._log_alpha)
        picture = add_light(picture, np.clip(embers, 0, 1), (255, 96, 20))
        self._draw_sparks(picture, t)
        return picture

    def _draw_sparks(self, picture: Image, t: float) -> None:
        for start, speed, drift, phase in self._sparks:
            self._draw_spark(picture, (start + speed * t) % 1.0, drift, phase + 5 * t)
        for number, crackle in enumerate(self._crackles):
            age_seconds = t - crackle.seconds
            if 0 < age_seconds < 4:
                first = 9 * number % len(self._sparks)
                for _, speed, drift, phase in self._sparks[first : first + round(9 * crackle.strength)]:
                    self._draw_spark(picture, 1.5 * speed * age_seconds, 2 * drift, phase + 5 * t)

    def _draw_spark(self, picture: Image, up: float, drift: float, angle: float) -> None:
        """``up``: share of the way up. Not drawn low in the flames, on what is bright, and outside."""
        x = self._centre + self._height * (drift * (0.5 + up) + 0.05 * up * math.sin(angle))
        y = self._base * (1 - up)
        if 0.2 < up < 1 and 1 <= x < self._width - 1 and picture[int(y), int(x), 0] < 120:
            brightness = 1 - 0.8 * up
            colour = (255 * brightness, 150 * brightness, 50 * brightness)
            cv2.circle(picture, eighths(np.array([x, y])), 7, colour, -1, cv2.LINE_AA, 3)


def _leap(age_seconds: float) -> float:
    """How high flames leap after a crackle, 0..1: up within 0.06 s, then down exponentially."""
    if not 0 <= age_seconds < 1.5:
        return 0.0
    return min(age_seconds / 0.06, 1.0) * math.exp(-age_seconds / 0.22)


class Wind:
    """A wheat field under fast clouds; gusts run across it and bend the wheat."""

    def __init__(self, seed: int, height: int, width: int, seconds: float) -> None:
        rng = generator(seed, "wind")
        self._seed, self._height, self._width = seed, height, width
        self._horizon = horizon = round(height * rng.uniform(0.26, 0.58))
        ripeness = rng.uniform(0, 1)
        self._straw: Colour = (round(150 + 66 * ripeness), round(160 + 14 * ripeness), round(76 + 10 * ripeness))
        self._sky = column_gradient(horizon, width, [(0, (64, 116, 180)), (1, (188, 212, 226))])
        self._clouds = Tile(fractal(rng, 256, 1024, slope=1.6, stretch=(1.8, 1.0)), horizon, width)
        self._cloud_layer = uniform_image(horizon, width, (246, 246, 244))
        self._shade_layer = uniform_image(horizon, width, (150, 158, 170))
        self._hills = below(horizon - horizon * (0.16 + 0.13 * ridge_line(rng, width, 1.4)), horizon, 1.5)
        self._hill_layer = uniform_image(horizon, width, (86, 112, 110))
        self._field = self._paint_field(rng)
        rows = height - horizon
        y, x = np.mgrid[:rows, :width].astype(np.float32)
        depth = 1.0 / (y / rows + 0.12)
        self._gusts = Warp(
            fractal(rng, 256, 256, slope=1.7, stretch=(1, 1.6)), (x - width / 2) * depth * 0.22, depth * 45
        )
        self._x, self._y = x, y
        self._run = rhythm.Travelled(lambda times: 0.3 + 1.4 * rhythm.gust(seed, times), seconds)
        self._bend = (height * (0.012 + 0.06 * y / rows)).astype(np.float32)
        # x and height in pixels, phase
        self._blades = [
            (rng.uniform(-0.05, 1.05) * width, rng.uniform(0.16, 0.36) * height, rng.uniform(0, 7)) for _ in range(80)
        ]

    def _paint_field(self, rng: np.random.Generator) -> Image:
        rows, width = self._height - self._horizon, self._width
        straw = np.array(self._straw)
        field = np.zeros((rows, width, 3), np.uint8)
        field[:] = straw * 0.8
        for step in range(26):
            nearness = (step / 25) ** 1.6
            base, height_px = nearness * rows * 1.1, rows * (0.025 + 0.2 * nearness)
            num_blades = round(width * (1.0 - 0.72 * nearness))
            for x, length, tone in zip(
                rng.uniform(0, width, num_blades),
                rng.uniform(0.7, 1.2, num_blades),
                rng.uniform(0.55, 1.15, num_blades),
                strict=True,
            ):
                colour = tuple(float(c) for c in straw * (tone * (0.98 - 0.25 * nearness)))
                foot = np.array([x, base + height_px])
                tip = np.array([x + 0.1 * height_px, base + height_px * (1 - length)])
                cv2.line(field, eighths(foot), eighths(tip), colour, 1 + round(1.2 * nearness), cv2.LINE_AA, 3)
        return field

    def __call__(self, t: float) -> Image:
        strength = float(rhythm.gust(self._seed, t))
        cloud = self._clouds.at(-34 * t, 2 * t)
        sky = over(self._sky, self._cloud_layer, smoothstep(cloud, 0.46, 0.62))
        sky = over(sky, self._shade_layer, 0.8 * smoothstep(cloud, 0.6, 0.9))
        sky = over(sky, self._hill_layer, self._hills)
        run = self._run(t)
        gusts = self._gusts.at(-52 * run, 9 * run)
        flutter = (0.02 + 0.08 * strength) * np.sin(9 * t + self._x * 0.09 + self._y * 0.13)
        push = (gusts - 0.3) * (0.35 + 1.0 * strength) + flutter
        moved_x, moved_y = self._x + push * self._bend, self._y + 0.35 * push * self._bend
        remapped = cv2.remap(self._field, moved_x, moved_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        field = np.asarray(remapped, dtype=np.uint8)
        sheen = smoothstep(gusts, 0.5, 0.9) * (0.25 + 0.5 * strength)
        picture = np.concatenate([sky, add_light(field, sheen, (150, 140, 110))])
        self._draw_blades(picture, t, strength)
        return picture

    def _draw_blades(self, picture: Image, t: float, strength: float) -> None:
        up = np.linspace(0, 1, 7)
        stems, ears = [], []
        for x, height_px, phase in self._blades:
            flutter = (0.02 + 0.16 * strength) * math.sin(5.2 * t + phase)
            bend = 0.16 + 0.5 * strength + flutter + 0.07 * math.sin(2.1 * t - x * 0.02)
            stem_y = self._height + 3 - height_px * up * (1 - 0.25 * bend * bend * up)
            stem = np.stack([x + height_px * bend * up**2, stem_y], axis=-1)
            stems.append((stem * 8).round().astype(np.int32))
            ears.append((stem[-1] + (stem[-1] - stem[-2]) * np.linspace(-0.2, 0.45, 4)[:, None]) * 8)
        dark, light = (tuple(c * factor for c in self._straw) for factor in (0.45, 0.9))
        cv2.polylines(picture, stems, False, dark, max(1, self._height // 180), cv2.LINE_AA, 3)
        cv2.polylines(
            picture, [ear.astype(np.int32) for ear in ears], False, light, max(2, self._height // 90), cv2.LINE_AA, 3
        )
