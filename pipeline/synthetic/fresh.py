"""Pictures of fresh water: rain on a lake, a river among stones, a waterfall."""

from __future__ import annotations

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
    to_bytes,
    uniform_image,
)


def conifers(rng: np.random.Generator, picture: Image, base: Floats, size_px: float, colour: Colour) -> None:
    """Draws a row of fir trees of about ``size_px`` that stand on the line ``base`` (pixels from the top, for each column)."""
    x = rng.uniform(-size_px, 0)
    while x < len(base) + size_px:
        foot = float(base[int(np.clip(x, 0, len(base) - 1))]) + 0.03 * size_px
        tree_px = size_px * rng.uniform(0.6, 1.15)
        for level in range(5):
            top, half_width = foot - tree_px * (1 - 0.17 * level), tree_px * (0.06 + 0.045 * level)
            bottom = top + tree_px * 0.34
            corners = np.array([[x, top], [x - half_width, bottom], [x + half_width, bottom]])
            cv2.fillPoly(picture, [(corners * 8).round().astype(np.int32)], colour, cv2.LINE_AA, 3)
        x += size_px * rng.uniform(0.16, 0.5)


# factors on red, green and blue of the land in rain: at noon, at dusk, under greenish clouds
_DAYLIGHT = ((1.06, 1.08, 1.06), (0.5, 0.56, 0.7), (0.84, 0.82, 0.68))


class Streaks:
    """Falling rain in two layers: many short streaks far away, and fewer long ones nearby.

    ``slant``: pixels to the left for each pixel downwards. ``light``: factor on the brightness.
    """

    def __init__(
        self, rng: np.random.Generator, height: int, width: int, *, slant: float = 0.12, light: float = 1.0
    ) -> None:
        self._layers = []
        for num_drops, length, brightness, speed in ((2200, 0.05, 0.13, 620.0), (420, 0.12, 0.24, 900.0)):
            dots = np.zeros((512, 512), np.float32)
            dots[rng.integers(0, 512, num_drops), rng.integers(0, 512, num_drops)] = rng.uniform(0.4, 1.0, num_drops)
            size = round(length * height)
            kernel = np.zeros((size, size), np.float32)
            top, bottom = (round(size / 2 + slant * size / 2), 0), (round(size / 2 - slant * size / 2), size)
            cv2.line(kernel, top, bottom, 1.0, 1)
            streaks = cv2.filter2D(np.pad(dots, 64, mode="wrap"), -1, kernel)[64:-64, 64:-64]
            self._layers.append(
                (Tile(to_bytes(np.clip(streaks, 0, 1) * brightness * light), height, width), speed, slant)
            )

    def on(self, picture: Image, t: float, density: float = 1.0) -> Image:
        """``picture`` with the streaks of time ``t`` (seconds) added to it; ``density`` is a factor on their light."""
        for tile, speed, slant in self._layers:
            streaks = shaded(tile.at(slant * speed * t, -speed * t), times=density)
            picture = add_light(picture, streaks, (200, 210, 222))
        return picture


class Rain:
    """Rain on a lake before wooded hills: streaks, rings on the water, and fog. It thickens with :func:`rhythm.shower`."""

    def __init__(self, seed: int, height: int, width: int, seconds: float) -> None:
        rng = generator(seed, "rain")
        shore = round(height * rng.uniform(0.42, 0.7))
        daylight = np.array(_DAYLIGHT[seed % len(_DAYLIGHT)])
        self._land = self._paint_land(rng, shore, width, daylight)
        self._fog = Tile(fractal(rng, 256, 512, slope=1.9, stretch=(2.2, 1.0)), shore, width)
        self._fog_rows = np.linspace(0.95, 0.15, shore, dtype=np.float32)[:, None]
        self._fog_layer = shaded(uniform_image(shore, width, (176, 182, 186)) * daylight)
        rows = height - shore
        self._make_lake(rng, rows, width)
        self._streaks = Streaks(rng, height, width)
        self._seed = seed
        count = round(180 * seconds)
        # when each drop meets the lake, in seconds, and where (x, y), in pixels
        drops = np.stack(
            [rng.uniform(-0.7, seconds, count), rng.uniform(0, width, count), rng.beta(1.1, 1.4, count) * rows], axis=-1
        )
        self._drops = drops[rng.uniform(0, 1, count) < rhythm.shower(seed, drops[:, 0])]

    def _paint_land(self, rng: np.random.Generator, shore: int, width: int, daylight: Floats) -> Image:
        tint = rng.uniform(0.8, 1.1)
        land = column_gradient(shore, width, [(0, (112, 120, 128)), (0.6, (164, 170, 174)), (1, (186, 190, 188))])
        for layer in range(4):
            nearness = layer / 3
            line = shore * (0.42 + 0.14 * layer) - shore * (0.2 - 0.045 * layer) * ridge_line(rng, width, 1.25)
            colour = tuple(
                round(a + (b - a) * nearness) for a, b in zip((150, 158, 162), (48, 66 * tint, 56), strict=True)
            )
            colour = (colour[0], colour[1], colour[2])
            if layer >= 2:
                conifers(rng, land, line, shore * (0.08 + 0.1 * (layer - 2)), colour)
            hill = shaded(
                uniform_image(shore, width, colour) * (0.88 + 0.24 * fractal(rng, shore, width, slope=1.1))[..., None]
            )
            land = over(land, hill, below(line, shore, 1.5))
        return shaded(land * daylight)

    def _make_lake(self, rng: np.random.Generator, rows: int, width: int) -> None:
        shore = len(self._land)
        mirrored = cv2.resize(self._land[::-1], (width, max(rows, round(shore * 1.15))))[:rows]
        blurred = cv2.GaussianBlur(mirrored, (0, 0), 2.0, sigmaY=3.5)
        self._lake = shaded(np.asarray(blurred, dtype=np.uint8), times=0.72, plus=4)
        y, x = np.mgrid[:rows, :width].astype(np.float32)
        depth = 1.0 / (y / rows + 0.06)
        self._waves = Warp(
            fractal(rng, 256, 256, slope=1.2, stretch=(1.0, 2.0)), (x - width / 2) * depth * 0.5, depth * 90
        )
        self._crest_layer = uniform_image(rows, width, (196, 204, 206))
        self._trough_layer = uniform_image(rows, width, (28, 40, 44))

    def _rings(self, t: float) -> Image:
        """Light of the rings on the lake and of the splashes in them: a ring grows and fades for 0.7 s."""
        rows, width = self._lake.shape[:2]
        rings = np.zeros((rows, width), np.uint8)
        ages = t - self._drops[:, 0]
        is_visible = (ages > 0) & (ages < 0.7)
        for (_, x, y), age in zip(self._drops[is_visible], ages[is_visible], strict=True):
            radius_px = (0.12 + 0.88 * y / rows) * rows * 0.14 * age / 0.7
            axes = (round(radius_px * 8), round(radius_px * 2.6))
            centre, brightness = eighths(np.array([x, y])), round(200 * (1 - age / 0.7))
            cv2.ellipse(rings, centre, axes, 0, 0, 360, brightness, 1, cv2.LINE_AA, 3)
            if age < 0.12:
                splash_top = eighths(np.array([x, y - radius_px * 2 - 2]))
                cv2.line(rings, centre, splash_top, 230, 1, cv2.LINE_AA, 3)
        return rings

    def __call__(self, t: float) -> Image:
        fog = smoothstep(self._fog.at(11 * t, 0), 0.38, 0.8) * self._fog_rows
        land = over(self._land, self._fog_layer, fog)
        waves = self._waves.at(5 * t, 14 * t)
        lake = over(self._lake, self._crest_layer, 0.5 * smoothstep(waves, 0.55, 0.95))
        lake = over(lake, self._trough_layer, 0.6 * smoothstep(1 - waves, 0.55, 0.95))
        lake = add_light(lake, self._rings(t), (176, 186, 190))
        density = 0.2 + 1.6 * float(rhythm.shower(self._seed, t))
        return self._streaks.on(np.concatenate([land, lake]), t, density)


# colours of the grass, far and near: in summer, in autumn, under snow
_MEADOWS: tuple[tuple[Colour, Colour], ...] = (
    ((74, 102, 54), (58, 92, 38)),
    ((142, 116, 62), (128, 90, 38)),
    ((186, 194, 202), (214, 218, 222)),
)


class River:
    """A river that runs towards the viewer between wooded banks, with foam behind its stones."""

    def __init__(self, seed: int, height: int, width: int, seconds: float) -> None:
        rng = generator(seed, "river")
        self._height, self._width = height, width
        self._top = top = round(height * rng.uniform(0.16, 0.44))
        self._banks = self._paint_banks(rng, top)
        rows = height - top
        y, x = np.mgrid[:rows, :width].astype(np.float32)
        nearness = y / rows
        depth = 1.0 / (nearness + 0.14)
        centre = width * (rng.uniform(0.35, 0.65) + 0.2 * np.sin(3.2 * nearness + rng.uniform(0, 6)) * (1 - nearness))
        half_width = width * (0.07 + 0.36 * nearness**0.8) * (1 + 0.1 * ridge_line(rng, rows, 1.2)[:, None])
        self._alpha = np.clip((half_width - np.abs(x - centre)) / 3 + 0.5, 0, 1).astype(np.float32)
        across, along = (x - centre) * depth * 0.6, depth * 110
        self._flow = Warp(fractal(rng, 512, 256, slope=1.25, stretch=(2.6, 1.0)), across, along)
        self._ripple = Warp(fractal(rng, 256, 256, slope=1.1, stretch=(1.0, 1.5)), across * 1.6, along * 1.5)
        water_depth = 1 - np.exp(-np.maximum(half_width - np.abs(x - centre), 0) / (0.06 * width))
        self._brightness = (0.62 - 0.34 * water_depth).astype(np.float32)
        hue = rng.uniform(0, 1)
        deep: Colour = (round(22 + 14 * hue), 62, round(70 - 18 * hue))
        self._colours = ramp(
            [(0, deep), (0.35, (44, 96, 98)), (0.6, (104, 138, 126)), (0.8, (188, 206, 204)), (1, (248, 250, 250))]
        )
        self._place_stones(rng, rows, centre[:, 0], half_width[:, 0])

    def _paint_banks(self, rng: np.random.Generator, top: int) -> Image:
        height, width = self._height, self._width
        rough = fractal(rng, height, width, slope=0.9)[..., None]
        meadow = _MEADOWS[int(rng.integers(len(_MEADOWS)))]
        grass = column_gradient(height, width, [(0, meadow[0]), (1, meadow[1])])
        picture = shaded(grass * (0.55 + 0.9 * rough))
        picture[:top] = column_gradient(top, width, [(0, (150, 186, 212)), (1, (214, 224, 220))])
        for layer, colour in enumerate(((96, 124, 106), (62, 92, 64), (36, 64, 38))):
            base = top * (0.75 + 0.14 * layer) + 0.08 * top * ridge_line(rng, width)
            conifers(rng, picture, base, top * (0.5 + 0.18 * layer), colour)
            hill = shaded(uniform_image(top + 4, width, colour) * (0.7 + 0.5 * rough[: top + 4]))
            picture[: top + 4] = over(picture[: top + 4], hill, below(base, top + 4, 2))
        return picture

    def _place_stones(self, rng: np.random.Generator, rows: int, centre: Floats, half_width: Floats) -> None:
        """Paints the stones, far ones first, and the water that they disturb. ``centre``, ``half_width``: the river's, in each row."""
        width = self._width
        stones, alpha = np.zeros((rows, width, 3), np.uint8), np.zeros((rows, width), np.uint8)
        wake = np.zeros((rows, width), np.float32)
        for nearness in np.sort(rng.uniform(0.04, 0.97, 17)):
            y = int(nearness * (rows - 1))
            x = centre[y] + half_width[y] * rng.uniform(-1.02, 1.02)
            size_px = width * (0.008 + 0.045 * nearness) * rng.uniform(0.6, 1.2)
            shade = rng.uniform(0.7, 1.15)
            for layer in range(7):
                middle = eighths(np.array([x - 0.09 * layer * size_px, y - size_px * (0.3 + 0.07 * layer)]))
                axes = (round(8 * size_px * (1 - 0.13 * layer)), round(8 * size_px * 0.62 * (1 - 0.13 * layer)))
                grey = shade * (52 + 17 * layer)
                cv2.ellipse(stones, middle, axes, 0, 0, 360, (grey, grey * 0.98, grey * 0.92), -1, cv2.LINE_AA, 3)
                cv2.ellipse(alpha, middle, axes, 0, 0, 360, 255, -1, cv2.LINE_AA, 3)
            foot = eighths(np.array([x, y + size_px * 0.35]))
            cv2.ellipse(wake, foot, (round(9.5 * size_px), round(5 * size_px)), 0, 0, 360, 1.0, -1, cv2.LINE_AA, 3)
            wake_end = eighths(np.array([x + rng.uniform(-1, 1) * size_px, y + 4.5 * size_px]))
            cv2.line(wake, foot, wake_end, 0.7, max(1, round(size_px)))
        rough = 0.75 + 0.5 * fractal(rng, rows, width, slope=0.8)[..., None]
        self._stones, self._stone_alpha = shaded(stones * rough), alpha.astype(np.float32) / 255
        self._wake = cv2.GaussianBlur(wake, (0, 0), width / 160)

    def __call__(self, t: float) -> Image:
        flow, ripple = self._flow.at(3 * np.sin(0.7 * t), 105 * t), self._ripple.at(6 * np.sin(1.1 * t), 150 * t)
        waves = flow + ripple - 1.0
        foam = self._wake * smoothstep(waves, -0.3, 0.3) + 0.5 * smoothstep(waves, 0.34, 0.6)
        water = coloured(np.clip(self._brightness + 0.42 * waves + 0.75 * foam, 0, 1), self._colours)
        banks = self._banks[self._top :]
        lower = over(over(banks, water, self._alpha), self._stones, self._stone_alpha)
        return np.concatenate([self._banks[: self._top], lower])


class Waterfall:
    """Water that falls between mossy rocks into a pool, with mist above the pool."""

    def __init__(self, seed: int, height: int, width: int, seconds: float) -> None:
        rng = generator(seed, "waterfall")
        self._height, self._width = height, width
        self._lip, self._foot = round(height * rng.uniform(0.08, 0.18)), round(height * rng.uniform(0.76, 0.82))
        self._rocks = self._paint_rocks(rng)
        rows = self._foot - self._lip + round(0.04 * height)
        y, x = np.mgrid[:rows, :width].astype(np.float32)
        down = y / rows
        centre = width * rng.uniform(0.27, 0.73) + 0.03 * width * ridge_line(rng, rows, 1.6)[:, None]
        half_width = width * rng.uniform(0.09, 0.22) * (0.8 + 0.45 * down)
        half_width = half_width * (1 + 0.1 * ridge_line(rng, rows, 1.6)[:, None])
        fringe = fractal(rng, rows, width, slope=1.3, stretch=(12, 1)) - 0.5
        inside = (half_width - np.abs(x - centre)) / (0.06 * width) + 2.4 * fringe
        self._alpha = smoothstep(inside, -0.1, 0.7)
        fall_y = np.sqrt(0.08 + down) * 700
        self._veils = [
            Warp(fractal(rng, 512, 512, slope=1.1, stretch=(14, 1)), (x - centre) * scale, fall_y * scale)
            for scale in (1.0, 1.7)
        ]
        self._colours = ramp([(0, (58, 84, 92)), (0.4, (142, 172, 182)), (0.7, (216, 230, 234)), (1, (255, 255, 255))])
        self._make_pool_and_mist(rng, float(centre[-1, 0]), float(half_width[-1, 0]))

    def _paint_rocks(self, rng: np.random.Generator) -> Image:
        height, width = self._height, self._width
        blocks = np.abs(fractal(rng, height, width, slope=1.7, stretch=(1.0, 0.8)) - 0.5) * 2.0
        field = blocks + 0.5 * fractal(rng, height, width, slope=1.2)
        slope = (np.roll(field, 2, axis=0) - field) + 0.7 * (np.roll(field, 2, axis=1) - field)
        brightness = np.clip(0.38 + 0.17 * slope / slope.std() + 0.3 * (field - field.mean()), 0, 1)
        stone = ramp([(0, (8, 9, 11)), (0.4, (46, 47, 46)), (1, (136, 132, 122))])
        moss = ramp([(0, (8, 14, 8)), (0.4, (38, 58, 26)), (1, (118, 142, 74))])
        moss_alpha = smoothstep(fractal(rng, height, width, slope=1.5), 0.5, 0.68)
        rocks = over(coloured(brightness, stone), coloured(brightness, moss), moss_alpha)
        line = self._lip * (0.8 + 0.5 * ridge_line(rng, width, 1.1))
        sky = column_gradient(height, width, [(0, (172, 200, 216)), (0.25, (222, 230, 226)), (1, (222, 230, 226))])
        conifers(rng, sky, line + 4, height * 0.16, (40, 66, 44))
        return over(sky, rocks, below(line, height, 2))

    def _make_pool_and_mist(self, rng: np.random.Generator, centre: float, half_width: float) -> None:
        """``centre``, ``half_width``: those of the fall at its foot, in pixels."""
        height, width, foot = self._height, self._width, self._foot
        rows = height - foot
        y, x = np.mgrid[:rows, :width].astype(np.float32)
        depth = 1.0 / (y / rows + 0.15)
        self._pool = Warp(fractal(rng, 256, 256, slope=1.15, stretch=(1, 1.8)), (x - centre) * depth * 0.5, depth * 60)
        churn = np.exp(-(((x - centre) / (1.5 * half_width)) ** 2)) * np.exp(-1.6 * y / rows)
        self._churn = (0.22 + 0.7 * churn).astype(np.float32)
        self._pool_colours = ramp(
            [(0, (14, 40, 42)), (0.4, (46, 92, 92)), (0.75, (168, 196, 196)), (1, (250, 252, 252))]
        )
        y, x = np.mgrid[:height, :width].astype(np.float32)
        squared_distance = ((x - centre) / (1.9 * half_width)) ** 2 + ((y - foot) / (0.2 * height)) ** 2
        self._mist_alpha = np.exp(-squared_distance).astype(np.float32)
        self._mist = Tile(fractal(rng, 256, 512, slope=1.6), height, width)
        self._mist_layer = uniform_image(height, width, (232, 240, 242))

    def __call__(self, t: float) -> Image:
        picture = self._rocks.copy()
        rows = len(self._alpha)
        veil = 0.55 * self._veils[0].at(0, -330 * t) + 0.45 * self._veils[1].at(40, -520 * t)
        water = coloured(np.clip(0.6 + 2.1 * (veil - 0.5), 0, 1), self._colours)
        fall = np.s_[self._lip : self._lip + rows]
        picture[fall] = over(picture[fall], water, self._alpha)
        waves = self._pool.at(0, 45 * t)
        picture[self._foot :] = coloured(np.clip(self._churn + 0.8 * (waves - 0.5), 0, 1), self._pool_colours)
        mist = smoothstep(self._mist.at(15 * np.sin(0.3 * t), 38 * t), 0.2, 0.8) * self._mist_alpha
        return over(picture, self._mist_layer, mist)
