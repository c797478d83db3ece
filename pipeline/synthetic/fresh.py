"""Pictures of fresh water: rain on a lake, a river among stones, a waterfall."""

from __future__ import annotations

import cv2
import numpy as np

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
    """Draw a row of fir trees that stand on the line ``base`` (pixels from the top, for each column)."""
    x = rng.uniform(-size_px, 0)
    while x < len(base) + size_px:
        foot = float(base[int(np.clip(x, 0, len(base) - 1))]) + 0.03 * size_px
        tall = size_px * rng.uniform(0.6, 1.15)
        for level in range(5):
            top, wide = foot - tall * (1 - 0.17 * level), tall * (0.06 + 0.045 * level)
            corners = np.array([[x, top], [x - wide, top + tall * 0.34], [x + wide, top + tall * 0.34]])
            cv2.fillPoly(picture, [(corners * 8).round().astype(np.int32)], colour, cv2.LINE_AA, 3)
        x += size_px * rng.uniform(0.16, 0.5)


# what the colours of a rainy day are multiplied by: noon, dusk, under a green canopy of cloud
_DAYLIGHT = ((1.06, 1.08, 1.06), (0.5, 0.56, 0.7), (0.84, 0.82, 0.68))


class Streaks:
    """Rain that falls through the picture, near and far."""

    def __init__(
        self, rng: np.random.Generator, height: int, width: int, *, slant: float = 0.12, light: float = 1.0
    ) -> None:
        self._layers = []
        for drops, length, brightness, speed in ((2200, 0.05, 0.13, 620.0), (420, 0.12, 0.24, 900.0)):
            dots = np.zeros((512, 512), np.float32)
            dots[rng.integers(0, 512, drops), rng.integers(0, 512, drops)] = rng.uniform(0.4, 1.0, drops)
            long = round(length * height)
            kernel = np.zeros((long, long), np.float32)
            cv2.line(
                kernel, (round(long / 2 + slant * long / 2), 0), (round(long / 2 - slant * long / 2), long), 1.0, 1
            )
            streaks = cv2.filter2D(np.pad(dots, 64, mode="wrap"), -1, kernel)[64:-64, 64:-64]
            self._layers.append(
                (Tile(to_bytes(np.clip(streaks, 0, 1) * brightness * light), height, width), speed, slant)
            )

    def on(self, picture: Image, t: float) -> Image:
        """``picture`` with the rain of time ``t`` falling before it."""
        for tile, speed, slant in self._layers:
            picture = add_light(picture, tile.at(slant * speed * t, -speed * t), (200, 210, 222))
        return picture


class Rain:
    """Rain on a lake before wooded hills: streaks, rings on the water, and low cloud."""

    def __init__(self, seed: int, height: int, width: int, seconds: float) -> None:
        rng = generator(seed, "rain")
        shore = round(height * rng.uniform(0.42, 0.7))
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
        land = shaded(land * np.array(_DAYLIGHT[seed % len(_DAYLIGHT)]))
        self._land = land
        self._fog = Tile(fractal(rng, 256, 512, slope=1.9, stretch=(2.2, 1.0)), shore, width)
        self._fog_rows = np.linspace(0.95, 0.15, shore, dtype=np.float32)[:, None]
        self._fog_layer = shaded(
            uniform_image(shore, width, (176, 182, 186)) * np.array(_DAYLIGHT[seed % len(_DAYLIGHT)])
        )
        rows = height - shore
        mirrored = cv2.resize(land[::-1], (width, max(rows, round(shore * 1.15))))[:rows]
        blurred = cv2.GaussianBlur(mirrored, (0, 0), 2.0, sigmaY=3.5)
        self._lake = shaded(np.asarray(blurred, dtype=np.uint8), times=0.72, plus=4)
        y, x = np.mgrid[:rows, :width].astype(np.float32)
        depth = 1.0 / (y / rows + 0.06)
        self._waves = Warp(
            fractal(rng, 256, 256, slope=1.2, stretch=(1.0, 2.0)), (x - width / 2) * depth * 0.5, depth * 90
        )
        self._light, self._dark = uniform_image(rows, width, (196, 204, 206)), uniform_image(rows, width, (28, 40, 44))
        self._streaks = Streaks(rng, height, width)
        count = round(90 * seconds)
        self._drops = np.stack(
            [rng.uniform(-0.7, seconds, count), rng.uniform(0, width, count), rng.beta(1.1, 1.4, count) * rows], axis=-1
        )

    def _rings(self, t: float) -> Image:
        rows, width = self._lake.shape[:2]
        rings = np.zeros((rows, width), np.uint8)
        age = t - self._drops[:, 0]
        for (_, x, y), old in zip(self._drops[(age > 0) & (age < 0.7)], age[(age > 0) & (age < 0.7)], strict=True):
            reach = (0.12 + 0.88 * y / rows) * rows * 0.14 * old / 0.7
            box = (round(reach * 8), round(reach * 2.6))
            cv2.ellipse(
                rings, eighths(np.array([x, y])), box, 0, 0, 360, round(200 * (1 - old / 0.7)), 1, cv2.LINE_AA, 3
            )
            if old < 0.12:
                cv2.line(
                    rings, eighths(np.array([x, y])), eighths(np.array([x, y - reach * 2 - 2])), 230, 1, cv2.LINE_AA, 3
                )
        return rings

    def __call__(self, t: float) -> Image:
        fog = smoothstep(self._fog.at(11 * t, 0), 0.38, 0.8) * self._fog_rows
        land = over(self._land, self._fog_layer, fog)
        waves = self._waves.at(5 * t, 14 * t)
        lake = over(self._lake, self._light, 0.5 * smoothstep(waves, 0.55, 0.95))
        lake = add_light(
            over(lake, self._dark, 0.6 * smoothstep(1 - waves, 0.55, 0.95)), self._rings(t), (176, 186, 190)
        )
        return self._streaks.on(np.concatenate([land, lake]), t)


# grass far and near: in summer, in autumn, under snow
_MEADOWS: tuple[tuple[Colour, Colour], ...] = (
    ((74, 102, 54), (58, 92, 38)),
    ((142, 116, 62), (128, 90, 38)),
    ((186, 194, 202), (214, 218, 222)),
)


class River:
    """A river that runs towards the viewer between wooded banks, white behind its stones."""

    def __init__(self, seed: int, height: int, width: int, seconds: float) -> None:
        rng = generator(seed, "river")
        self._height, self._width = height, width
        self._top = top = round(height * rng.uniform(0.16, 0.44))
        self._banks = self._paint_banks(rng, top)
        rows = height - top
        y, x = np.mgrid[:rows, :width].astype(np.float32)
        near = y / rows
        depth = 1.0 / (near + 0.14)
        bend = width * (rng.uniform(0.35, 0.65) + 0.2 * np.sin(3.2 * near + rng.uniform(0, 6)) * (1 - near))
        half = width * (0.07 + 0.36 * near**0.8) * (1 + 0.1 * ridge_line(rng, rows, 1.2)[:, None])
        self._alpha = np.clip((half - np.abs(x - bend)) / 3 + 0.5, 0, 1).astype(np.float32)
        across, along = (x - bend) * depth * 0.6, depth * 110
        self._flow = Warp(fractal(rng, 512, 256, slope=1.25, stretch=(2.6, 1.0)), across, along)
        self._ripple = Warp(fractal(rng, 256, 256, slope=1.1, stretch=(1.0, 1.5)), across * 1.6, along * 1.5)
        shallow = 1 - np.exp(-np.maximum(half - np.abs(x - bend), 0) / (0.06 * width))
        self._base = (0.62 - 0.34 * shallow).astype(np.float32)
        hue = rng.uniform(0, 1)
        deep: Colour = (round(22 + 14 * hue), 62, round(70 - 18 * hue))
        self._colours = ramp(
            [(0, deep), (0.35, (44, 96, 98)), (0.6, (104, 138, 126)), (0.8, (188, 206, 204)), (1, (248, 250, 250))]
        )
        self._place_stones(rng, rows, bend[:, 0], half[:, 0])

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
            trunk = shaded(uniform_image(top + 4, width, colour) * (0.7 + 0.5 * rough[: top + 4]))
            picture[: top + 4] = over(picture[: top + 4], trunk, below(base, top + 4, 2))
        return picture

    def _place_stones(self, rng: np.random.Generator, rows: int, bend: Floats, half: Floats) -> None:
        width = self._width
        stones, alpha = np.zeros((rows, width, 3), np.uint8), np.zeros((rows, width), np.uint8)
        wake = np.zeros((rows, width), np.float32)
        for near in np.sort(rng.uniform(0.04, 0.97, 17)):
            y = int(near * (rows - 1))
            x, size = (
                bend[y] + half[y] * rng.uniform(-1.02, 1.02),
                width * (0.008 + 0.045 * near) * rng.uniform(0.6, 1.2),
            )
            shade = rng.uniform(0.7, 1.15)
            for part in range(7):
                centre = eighths(np.array([x - 0.09 * part * size, y - size * (0.3 + 0.07 * part)]))
                box = (round(8 * size * (1 - 0.13 * part)), round(8 * size * 0.62 * (1 - 0.13 * part)))
                grey = shade * (52 + 17 * part)
                cv2.ellipse(stones, centre, box, 0, 0, 360, (grey, grey * 0.98, grey * 0.92), -1, cv2.LINE_AA, 3)
                cv2.ellipse(alpha, centre, box, 0, 0, 360, 255, -1, cv2.LINE_AA, 3)
            at = eighths(np.array([x, y + size * 0.35]))
            cv2.ellipse(wake, at, (round(9.5 * size), round(5 * size)), 0, 0, 360, 1.0, -1, cv2.LINE_AA, 3)
            cv2.line(
                wake, at, eighths(np.array([x + rng.uniform(-1, 1) * size, y + 4.5 * size])), 0.7, max(1, round(size))
            )
        rough = 0.75 + 0.5 * fractal(rng, rows, width, slope=0.8)[..., None]
        self._stones, self._stone_alpha = shaded(stones * rough), alpha.astype(np.float32) / 255
        self._wake = cv2.GaussianBlur(wake, (0, 0), width / 160)

    def __call__(self, t: float) -> Image:
        flow, ripple = self._flow.at(3 * np.sin(0.7 * t), 105 * t), self._ripple.at(6 * np.sin(1.1 * t), 150 * t)
        both = flow + ripple - 1.0
        foam = self._wake * smoothstep(both, -0.3, 0.3) + 0.5 * smoothstep(both, 0.34, 0.6)
        water = coloured(np.clip(self._base + 0.42 * both + 0.75 * foam, 0, 1), self._colours)
        banks = self._banks[self._top :]
        lower = over(over(banks, water, self._alpha), self._stones, self._stone_alpha)
        return np.concatenate([self._banks[: self._top], lower])


class Waterfall:
    """Water that falls between mossy rocks into a pool, with mist at its foot."""

    def __init__(self, seed: int, height: int, width: int, seconds: float) -> None:
        rng = generator(seed, "waterfall")
        self._height, self._width = height, width
        self._lip, self._foot = round(height * rng.uniform(0.08, 0.18)), round(height * rng.uniform(0.76, 0.82))
        self._rocks = self._paint_rocks(rng)
        rows = self._foot - self._lip + round(0.04 * height)
        y, x = np.mgrid[:rows, :width].astype(np.float32)
        down = y / rows
        centre = width * rng.uniform(0.27, 0.73) + 0.03 * width * ridge_line(rng, rows, 1.6)[:, None]
        half = width * rng.uniform(0.09, 0.22) * (0.8 + 0.45 * down) * (1 + 0.1 * ridge_line(rng, rows, 1.6)[:, None])
        torn = fractal(rng, rows, width, slope=1.3, stretch=(12, 1)) - 0.5
        inside = (half - np.abs(x - centre)) / (0.06 * width) + 2.4 * torn
        self._alpha = smoothstep(inside, -0.1, 0.7)
        fall_y = np.sqrt(0.08 + down) * 700
        self._veils = [
            Warp(fractal(rng, 512, 512, slope=1.1, stretch=(14, 1)), (x - centre) * squeeze, fall_y * squeeze)
            for squeeze in (1.0, 1.7)
        ]
        self._colours = ramp([(0, (58, 84, 92)), (0.4, (142, 172, 182)), (0.7, (216, 230, 234)), (1, (255, 255, 255))])
        self._make_pool_and_mist(rng, float(centre[-1, 0]), float(half[-1, 0]))

    def _paint_rocks(self, rng: np.random.Generator) -> Image:
        height, width = self._height, self._width
        blocks = np.abs(fractal(rng, height, width, slope=1.7, stretch=(1.0, 0.8)) - 0.5) * 2.0
        field = blocks + 0.5 * fractal(rng, height, width, slope=1.2)
        light = (np.roll(field, 2, axis=0) - field) + 0.7 * (np.roll(field, 2, axis=1) - field)
        relief = np.clip(0.38 + 0.17 * light / light.std() + 0.3 * (field - field.mean()), 0, 1)
        stone = ramp([(0, (8, 9, 11)), (0.4, (46, 47, 46)), (1, (136, 132, 122))])
        moss = ramp([(0, (8, 14, 8)), (0.4, (38, 58, 26)), (1, (118, 142, 74))])
        where = smoothstep(fractal(rng, height, width, slope=1.5), 0.5, 0.68)
        picture = over(coloured(relief, stone), coloured(relief, moss), where)
        line = self._lip * (0.8 + 0.5 * ridge_line(rng, width, 1.1))
        sky = column_gradient(height, width, [(0, (172, 200, 216)), (0.25, (222, 230, 226)), (1, (222, 230, 226))])
        conifers(rng, sky, line + 4, height * 0.16, (40, 66, 44))
        return over(sky, picture, below(line, height, 2))

    def _make_pool_and_mist(self, rng: np.random.Generator, centre: float, half: float) -> None:
        height, width, foot = self._height, self._width, self._foot
        rows = height - foot
        y, x = np.mgrid[:rows, :width].astype(np.float32)
        depth = 1.0 / (y / rows + 0.15)
        self._pool = Warp(fractal(rng, 256, 256, slope=1.15, stretch=(1, 1.8)), (x - centre) * depth * 0.5, depth * 60)
        churn = np.exp(-(((x - centre) / (1.5 * half)) ** 2)) * np.exp(-1.6 * y / rows)
        self._churn = (0.22 + 0.7 * churn).astype(np.float32)
        self._pool_colours = ramp(
            [(0, (14, 40, 42)), (0.4, (46, 92, 92)), (0.75, (168, 196, 196)), (1, (250, 252, 252))]
        )
        y, x = np.mgrid[:height, :width].astype(np.float32)
        around = ((x - centre) / (1.9 * half)) ** 2 + ((y - foot) / (0.2 * height)) ** 2
        self._mist_alpha = np.exp(-around).astype(np.float32)
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
