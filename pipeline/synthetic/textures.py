"""Parts of the painted pictures: repeating noise, palettes, ridge lines, camera grain.

A scene makes its textures once; a frame only shifts, warps and blends them. Colours are (red, green, blue), 0..255.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.schema import stable_hash

Floats = NDArray[np.floating[Any]]
Image = NDArray[np.uint8]
Painter = Callable[[float], Image]
"""Time in seconds from the scene's start -> an RGB frame, (height, width, 3) uint8."""
Colour = tuple[int, int, int]


def generator(*parts: object) -> np.random.Generator:
    """A random generator whose seed is the hash of ``parts``: equal parts give equal numbers."""
    return np.random.Generator(np.random.PCG64(int(stable_hash(*parts), 16)))


def fractal(
    rng: np.random.Generator, height: int, width: int, *, slope: float = 1.6, stretch: tuple[float, float] = (1.0, 1.0)
) -> NDArray[np.float32]:
    """Noise (height, width), 0..1, that repeats without a seam in both directions.

    Its amplitude spectrum falls as 1/f^slope, its mean is 0.5, and its standard deviation 0.2 before values are limited
    to 0..1. ``stretch``: factors by which its features are longer along y and x.
    """
    f_y = np.fft.fftfreq(height)[:, None] * height * stretch[0]
    f_x = np.fft.rfftfreq(width)[None, :] * width * stretch[1]
    radius = np.hypot(f_y, f_x)
    radius[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / radius**slope
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(height, width))
    return np.asarray(np.clip(0.5 + 0.2 * field / field.std(), 0.0, 1.0), dtype=np.float32)


def to_bytes(field: Floats) -> Image:
    """Values 0..1 as bytes 0..255; values outside that range are limited to it."""
    return np.asarray(np.clip(field, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


class Tile:
    """Cuts windows of ``height`` by ``width`` pixels from a texture that repeats in both directions."""

    def __init__(self, texture: Floats | Image, height: int, width: int) -> None:
        self._size = (width, height)
        self._period = texture.shape[:2]
        pad = ((1, height + 2), (1, width + 2), *(((0, 0),) * (texture.ndim - 2)))
        self._padded: NDArray[Any] = np.pad(texture, pad, mode="wrap")

    def at(self, x: float, y: float) -> NDArray[Any]:
        """The window whose top left corner lies at (x, y) of the texture, in pixels; fractions are interpolated."""
        width, height = self._size
        left, top = x % self._period[1] + 1, y % self._period[0] + 1
        return np.asarray(cv2.getRectSubPix(self._padded, self._size, (left + (width - 1) / 2, top + (height - 1) / 2)))


class Warp:
    """Samples a repeating texture through a fixed map, such as a plane in perspective, while the texture moves.

    ``x`` and ``y`` (height, width): where each pixel of the result lies in the texture, in pixels of the texture. The
    values of the texture are 0..1.
    """

    def __init__(self, texture: Floats, x: Floats, y: Floats) -> None:
        rows, columns = texture.shape
        self._period = (columns, rows)
        self._texture = np.pad(np.tile(to_bytes(texture), (2, 2)), ((0, 2), (0, 2)), mode="wrap")
        self._x, self._y = np.mod(x, columns).astype(np.float32), np.mod(y, rows).astype(np.float32)

    def at(self, x: float, y: float) -> NDArray[np.float32]:
        """The texture moved by (x, y) pixels, 0..1, (height, width)."""
        map_x = self._x + np.float32(x % self._period[0])
        map_y = self._y + np.float32(y % self._period[1])
        sampled = cv2.remap(self._texture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.multiply(sampled, np.float32(1 / 255), dtype=np.float32)


def shaded(picture: Floats | Image, *, times: float = 1.0, plus: float = 0.0) -> Image:
    """``picture * times + plus`` as rounded bytes: the absolute value, at most 255."""
    return np.asarray(cv2.convertScaleAbs(picture, alpha=times, beta=plus), dtype=np.uint8)


def uniform_image(height: int, width: int, colour: Colour) -> Image:
    """A picture of one colour."""
    return np.full((height, width, 3), colour, np.uint8)


def ramp(stops: Sequence[tuple[float, Colour]]) -> Image:
    """A palette of 256 colours, (256, 1, 3), interpolated between ``stops``: (position in 0..1, colour)."""
    positions = [position * 255 for position, _ in stops]
    channels = [np.interp(np.arange(256), positions, [colour[c] for _, colour in stops]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)[:, None, :]


def coloured(field: Floats | Image, palette: Image) -> Image:
    """The palette's colour for each value of a field (height, width) of 0..1 or of bytes: (height, width, 3)."""
    indices = field if field.dtype == np.uint8 else shaded(field, times=255.0)
    return np.asarray(cv2.applyColorMap(np.ascontiguousarray(indices), palette), dtype=np.uint8)


def column_gradient(height: int, width: int, stops: Sequence[tuple[float, Colour]]) -> Image:
    """A vertical gradient, (height, width, 3). ``stops`` as in :func:`ramp`: 0 is the top, 1 the bottom."""
    rows = ramp(stops)[np.linspace(0, 255, height).round().astype(int), 0]
    return np.repeat(rows[:, None, :], width, axis=1)


def over(under: Image, above: Image, alpha: Floats) -> Image:
    """``above`` composited over ``under``; ``alpha`` (height, width), 0..1, is the opacity of ``above``."""
    weight = alpha.astype(np.float32, copy=False)
    return np.asarray(cv2.blendLinear(above, under, weight, 1.0 - weight), dtype=np.uint8)


def ridge_line(rng: np.random.Generator, width: int, roughness: float = 1.5) -> NDArray[np.float32]:
    """A skyline (width,), -1..1: a sum of sines whose amplitudes fall as 1/k^roughness."""
    line = np.zeros(width)
    for k in range(1, 60):
        line += (
            np.sin(np.pi * (k * np.arange(width) / width + 2 * rng.uniform())) * rng.uniform(0.3, 1.0) / k**roughness
        )
    return np.asarray(line / np.abs(line).max(), dtype=np.float32)


def below(line: Floats, height: int, soft_px: float = 1.0) -> NDArray[np.float32]:
    """Alpha (height, width): 1 below a line (width,) given in pixels from the top, 0 above, ``soft_px`` of transition."""
    rows = np.arange(height, dtype=np.float32)[:, None]
    return np.clip((rows - line[None, :]) / soft_px + 0.5, 0.0, 1.0).astype(np.float32)


def smoothstep(field: Floats, low: float, high: float) -> NDArray[np.float32]:
    """0 below ``low``, 1 above ``high``, and between them the cubic 3t^2 - 2t^3."""
    t = np.clip((field - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


@functools.cache
def _light_palette(colour: Colour) -> Image:
    """The palette from black to ``colour``."""
    return ramp([(0, (0, 0, 0)), (1, colour)])


def add_light(picture: Image, light: Floats | Image, colour: Colour) -> Image:
    """Adds ``colour`` times ``light`` (height, width), 0..1 or bytes; sums are limited to 255."""
    return np.asarray(cv2.add(picture, coloured(light, _light_palette(colour))), dtype=np.uint8)


def eighths(point: Floats) -> tuple[int, int]:
    """A point (x, y) in whole eighths of a pixel, the unit of OpenCV's drawing functions with ``shift=3``."""
    return round(float(point[0]) * 8), round(float(point[1]) * 8)


class Grain:
    """Camera grain: noise that is equal on all channels and shifted from frame to frame.

    ``strength``: its standard deviation, in levels of 0..255.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int, strength: float) -> None:
        noise = rng.standard_normal((height + 64, width + 64)) * strength
        self._brighter = np.repeat(np.clip(noise, 0, 60).astype(np.uint8)[..., None], 3, axis=-1)
        self._darker = np.repeat(np.clip(-noise, 0, 60).astype(np.uint8)[..., None], 3, axis=-1)
        self._size = (height, width)

    def on(self, picture: Image, frame_number: int) -> Image:
        """``picture`` with the grain of a frame."""
        height, width = self._size
        y, x = (frame_number * 37) % 64, (frame_number * 23 + frame_number // 64) % 64
        window = np.s_[y : y + height, x : x + width]
        return np.asarray(cv2.subtract(cv2.add(picture, self._brighter[window]), self._darker[window]), dtype=np.uint8)
