"""Footage whose truth is known by construction: every frame carries its number, and the sound is noise that never repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 320, 192
FPS = 25.0
SOUND_HZ = 48_000
NUM_BITS = 10
BIT_PX, BIT_STEP_PX = 24, 30


def numbered_frames(numbers: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
    """A bar code of the number above moving noise: (192, 320, 3)."""
    for number in numbers:
        frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
        for bit in range(NUM_BITS):
            left = 10 + bit * BIT_STEP_PX
            frame[20:52, left : left + BIT_PX] = 235 if number >> bit & 1 else 16
        frame[100:] = np.random.default_rng(number).integers(60, 200, (HEIGHT - 100, WIDTH, 1))
        yield frame


def number_in(luma: npt.NDArray[np.uint8]) -> int:
    """The number that a frame of :func:`numbered_frames` carries, at any size."""
    scale = luma.shape[1] / WIDTH
    row = luma[round(36 * scale)]
    return sum(1 << bit for bit in range(NUM_BITS) if row[round((22 + bit * BIT_STEP_PX) * scale)] > 128)


def noise(seconds: float, *, seed: int = 0, level: float = 0.1, channels: int = 1) -> npt.NDArray[np.float32]:
    """White noise at 48 kHz, (samples, channels), of the given RMS."""
    samples = np.random.default_rng(seed).standard_normal((round(seconds * SOUND_HZ), channels))
    return (samples * level).clip(-1, 1).astype(np.float32)


def tone(seconds: float, hz: float = 440.0, level: float = 0.3, rate_hz: int = SOUND_HZ) -> npt.NDArray[np.float32]:
    """A sine, (samples, 1), of the given amplitude."""
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz))[:, None].astype(np.float32)


def shots(
    seconds: Sequence[float], fps: float = FPS, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Iterator[npt.NDArray[np.uint8]]:
    """Shots of different texture and colour, each of the given length, moving slowly sideways,
    with a little noise in every frame."""
    for index, length in enumerate(seconds):
        rng = np.random.default_rng(1000 + index)
        coarse = rng.integers(30, 226, (6, 10, 3)).astype(np.uint8)
        view = np.kron(coarse, np.ones((size[1] // 6, size[0] // 10, 1), np.uint8))
        full = np.zeros((size[1], size[0], 3), np.uint8)
        full[: view.shape[0], : view.shape[1]] = view
        for number in range(round(length * fps)):
            yield (
                (np.roll(full, number, axis=1).astype(np.int16) + rng.integers(-12, 13, full.shape))
                .clip(0, 255)
                .astype(np.uint8)
            )
