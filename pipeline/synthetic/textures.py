"""What the pictures are painted with: noise that tiles, ramps of colour, ridges, grain.

Textures are made once for a scene; a frame only shifts, warps and blends them. Colours are red, green, blue.
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
    """Random numbers that depend on the parts alone."""
    return np.random.Generator(np.random.PCG64(int(stable_hash(*parts), 16)))


def fractal(
    rng: np.random.Generator, height: int, width: int, *, slope: float = 1.6, stretch: tuple[float, float] = (1.0, 1.0)
) -> NDArray[np.float32]:
    """Noise of spectrum 1/f^slope that tiles in both directions, spread over 0..1 with a mean of 0.5.

    ``stretch`` lengthens its features along (y, x).
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
    """0..1 to 0..255."""
    return np.asarray(np.clip(field, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


class Tile:
    """A texture that can be cut at any place: it repeats in both directions, and places may lie between pixels."""

    def __init__(self, texture: Floats | Image, height: int, width: int) -> None:
        self._size = (width, height)
        self._period = texture.shape[:2]
        pad = ((1, height + 2), (1, width + 2), *(((0, 0),) * (texture.ndim - 2)))
        self._padded: NDArray[Any] = np.pad(texture, pad, mode="wrap")

    def at(self, x: float, y: float) -> NDArray[Any]:
        """The window whose top left corner lies at (x, y) of the texture."""
        width, height = self._size
        left, top = x % self._period[1] + 1, y % self._period[0] + 1
        return np.asarray(cv2.getRectSubPix(self._padded, self._size, (left + (width - 1) / 2, top + (height - 1) / 2)))


class Warp:
    """A repeating texture seen through a map that stays (a plane in perspective, say) while the texture moves.

    ``x`` and ``y`` (height, width) are places in the texture, in its pixels; values of the texture are 0..1.
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
        seen = cv2.remap(self._texture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.multiply(seen, np.float32(1 / 255), dtype=np.float32)


def shaded(picture: Floats | Image, *, times: float = 1.0, plus: float = 0.0) -> Image:
    """Brightness times and plus something, as bytes that saturate."""
    return np.asarray(cv2.convertScaleAbs(picture, alpha=times, beta=plus), dtype=np.uint8)


def uniform_image(height: int, width: int, colour: Colour) -> Image:
    """A picture of one colour."""
    return np.full((height, width, 3), colour, np.uint8)


def ramp(stops: Sequence[tuple[float, Colour]]) -> Image:
    """A palette of 256 colours, (256, 1, 3), through the colours at the given places in 0..1."""
    places = [place * 255 for place, _ in stops]
    channels = [np.interp(np.arange(256), places, [colour[c] for _, colour in stops]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)[:, None, :]


def coloured(field: Floats | Image, palette: Image) -> Image:
    """A field of 0..1 (or bytes) through a palette, (height, width, 3)."""
    bytes_ = field if field.dtype == np.uint8 else shaded(field, times=255.0)
    return np.asarray(cv2.applyColorMap(np.ascontiguousarray(bytes_), palette), dtype=np.uint8)


def column_gradient(height: int, width: int, stops: Sequence[tuple[float, Colour]]) -> Image:
    """A picture that runs through the colours from its top to its bottom."""
    rows = ramp(stops)[np.linspace(0, 255, height).round().astype(int), 0]
    return np.repeat(rows[:, None, :], width, axis=1)


def over(under: Image, above: Image, alpha: Floats) -> Image:
    """``above`` laid over ``under``, alpha (height, width) in 0..1."""
    weight = alpha.astype(np.float32, copy=False)
    return np.asarray(cv2.blendLinear(above, under, weight, 1.0 - weight), dtype=np.uint8)


def ridge_line(rng: np.random.Generator, width: int, roughness: float = 1.5) -> NDArray[np.float32]:
    """A skyline, -1..1 for each column."""
    line = np.zeros(width)
    for k in range(1, 60):
        line += (
            np.sin(np.pi * (k * np.arange(width) / width + 2 * rng.uniform())) * rng.uniform(0.3, 1.0) / k**roughness
        )
    return np.asarray(line / np.abs(line).max(), dtype=np.float32)


def below(line: Floats, height: int, soft_px: float = 1.0) -> NDArray[np.float32]:
    """Alpha (height, width) of everything below a line given in pixels from the top."""
    rows = np.arange(height, dtype=np.float32)[:, None]
    return np.clip((rows - line[None, :]) / soft_px + 0.5, 0.0, 1.0).astype(np.float32)


def smoothstep(field: Floats, low: float, high: float) -> NDArray[np.float32]:
    """0 below ``low``, 1 above ``high``, smooth between."""
    t = np.clip((field - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


@functools.cache
def _glow(colour: Colour) -> Image:
    return ramp([(0, (0, 0, 0)), (1, colour)])


def add_light(picture: Image, light: Floats | Image, colour: Colour) -> Image:
    """Add a light of the given colour where ``light`` (0..1, or bytes) shines; saturates."""
    return np.asarray(cv2.add(picture, coloured(light, _glow(colour))), dtype=np.uint8)


def eighths(point: Floats) -> tuple[int, int]:
    """A point in eighths of a pixel, as OpenCV draws it with ``shift=3``."""
    return round(float(point[0]) * 8), round(float(point[1]) * 8)


class Grain:
    """Camera grain: the same on all channels, another in every frame."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, strength: float) -> None:
        noise = rng.standard_normal((height + 64, width + 64)) * strength
        self._brighter = np.repeat(np.clip(noise, 0, 60).astype(np.uint8)[..., None], 3, axis=-1)
        self._darker = np.repeat(np.clip(-noise, 0, 60).astype(np.uint8)[..., None], 3, axis=-1)
        self._size = (height, width)

    def on(self, picture: Image, number: int) -> Image:
        """``picture`` with the grain of frame ``number``."""
        height, width = self._size
        y, x = (number * 37) % 64, (number * 23 + number // 64) % 64
        window = np.s_[y : y + height, x : x + width]
        return np.asarray(cv2.subtract(cv2.add(picture, self._brighter[window]), self._darker[window]), dtype=np.uint8)
