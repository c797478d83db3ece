"""How far the motion of the painted scenes follows their sound, class by class.

python -m benchmarks.painted_motion                    every class, seeds 500 to 505, 8 s of each
python -m benchmarks.painted_motion --only rain wind --seeds 3
python -m benchmarks.painted_motion --redrawn          of pictures that the packaged generator draws again from their codes

Motion is the mean absolute change of grey between neighbouring frames at 25 fps and 32x32 pixels, of 255. Loudness is the RMS level in
dB of the same 0.04 s. Both are smoothed over 0.2 s; the correlation is the highest at a lag of at most 0.2 s. For ``light follows``
the mean grey of the upper half takes the place of motion, and RMS that of its level. ``dB spread`` is the standard deviation of the
smoothed level, ``ms/frame`` the CPU time of painting one frame.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipeline.synthetic.pictures import scene_frames
from pipeline.synthetic.sounds import NATURE_KINDS, Sound, nature_sound
from pipeline.synthetic.textures import Image
from trainer.model.load import read_generator_file
from trainer.model.pictures import to_uint8
from trainer.prior.networks import PAINTED_FILE

FPS = 25
RATE_HZ = 24000
SMOOTHED_FRAMES, MAX_LAG_FRAMES = 5, 5
FIRST_SEED = 500

Series = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PictureSeries:
    """What is measured of the frames, a value for each."""

    motion: Series
    """Since the frame before. That of the first frame is repeated from the second."""
    light: Series
    """Mean grey of the upper half."""


def picture_series(frames: Iterable[Image]) -> PictureSeries:
    """Of frames (height, width, 3) at 25 fps."""
    greys = np.stack(
        [
            cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
            for frame in frames
        ]
    ).astype(np.float64)
    changes = np.abs(np.diff(greys, axis=0)).mean(axis=(1, 2))
    return PictureSeries(np.concatenate([changes[:1], changes]), greys[:, :16].mean(axis=(1, 2)))


def loudness(sound: Sound, num_frames: int) -> Series:
    """RMS of the sound (samples, channels) during each frame."""
    blocks = sound.astype(np.float64).reshape(num_frames, -1)
    return np.asarray(np.sqrt((blocks**2).mean(axis=1)))


def decibels(rms: Series) -> Series:
    return np.asarray(20 * np.log10(np.maximum(rms, 1e-3)))


def smoothed(series: Series) -> Series:
    return np.convolve(series, np.full(SMOOTHED_FRAMES, 1 / SMOOTHED_FRAMES), mode="valid")


def best_correlation(picture: Series, sound: Series) -> float:
    """Pearson's correlation of the smoothed series, at the lag where it is highest."""
    one, other = smoothed(picture), smoothed(sound)
    num_values = len(one)
    matches = [
        np.corrcoef(one[max(-lag, 0) : num_values - max(lag, 0)], other[max(lag, 0) : num_values + min(lag, 0)])[0, 1]
        for lag in range(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1)
    ]
    return float(max(matches))


class Redraw:
    """The packaged generator of painted scenes, and its encoder of frames."""

    def __init__(self) -> None:
        file = read_generator_file(PAINTED_FILE)
        self._generator, self._codes = file.generator(), file.frame_codes(torch.device("cpu"))

    @torch.no_grad()
    def __call__(self, frames: Sequence[Image]) -> Iterator[Image]:
        """The pictures that the codes of frames give."""
        side_px = self._generator.resolution
        for first in range(0, len(frames), 32):
            frames_NHWC = torch.from_numpy(np.stack(frames[first : first + 32]))
            pictures_NCHW = frames_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
            pictures_NCHW = functional.interpolate(pictures_NCHW, (side_px, side_px), mode="area")
            yield from to_uint8(self._generator.synthesis(self._codes(pictures_NCHW))).numpy()


def _row(kind: str, seeds: range, seconds: float, redraw: Redraw | None) -> str:
    """The line of a class: means over its scenes, and the least correlation of motion."""
    num_frames = round(seconds * FPS)
    times = [number / FPS for number in range(num_frames)]
    values = []
    for seed in seeds:
        started = time.process_time()
        frames = list(scene_frames(kind, seed, times, width=320, height=180, seconds=seconds))
        ms = 1000 * (time.process_time() - started) / num_frames
        shown = frames if redraw is None else redraw(frames)
        picture, rms = picture_series(shown), loudness(nature_sound(kind, seed, seconds, RATE_HZ), num_frames)
        level = decibels(rms)
        motion, light = best_correlation(picture.motion, level), best_correlation(picture.light, rms)
        values.append((motion, light, picture.motion.mean(), smoothed(level).std(), ms))
    motion, light, mean_motion, spread, ms = np.mean(values, axis=0)
    least = min(value[0] for value in values)
    return f"{kind:12}{motion:15.2f}{least:8.2f}{light:15.2f}{mean_motion:9.2f}{spread:11.1f}{ms:10.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="CLASS", default=NATURE_KINDS, choices=NATURE_KINDS)
    parser.add_argument("--seeds", type=int, default=6, help="scenes of each class (%(default)s)")
    parser.add_argument("--redrawn", action="store_true", help="drawn again by the packaged generator")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each (%(default)s)")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    redraw = Redraw() if options.redrawn else None
    print(
        f"{'class':12}{'motion follows':>15}{'least':>8}{'light follows':>15}{'motion':>9}{'dB spread':>11}{'ms/frame':>10}"
    )
    for kind in options.only:
        print(_row(kind, range(FIRST_SEED, FIRST_SEED + options.seeds), options.seconds, redraw), flush=True)


if __name__ == "__main__":
    main()
