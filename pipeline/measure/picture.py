"""Measures of a clip's picture: numbers of every frame, taken while the video is decoded, then aggregated over each clip."""

from __future__ import annotations

import bisect
import collections
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.measure.fingerprint import picture_hash
from pipeline.measure.rhythm import Series, on_grid
from pipeline.media.decoding import Luma, Picture
from pipeline.schema import Bars, PictureMeasures
from pipeline.settings import Settings

LONG_SIDE_PX = 256
"""Longer side of the small picture that most measures are taken from."""
MOTION_SECONDS = 0.2
STILL_SECONDS = 0.5
SHARPNESS_LINES = 360
"""Height of the picture that sharpness is measured in, so that it is comparable across resolutions."""
BLACK_LUMA, WHITE_LUMA = 12.0, 243.0
STILL_CHANGE = 0.4
"""Mean change of luma (0..255) in half a second below which a picture is still. The noise of an encoder reaches 0.3, the most still
pond more than 2."""
NUM_HASHES = 8

Means = npt.NDArray[np.uint8]
"""Mean luma of every row or column, 0..255."""


class PictureSettings(Settings):
    """Measures that are taken from some frames only."""

    sample_seconds: float = Field(0.5, gt=0)
    """Time between frames that sharpness, bars and the perceptual hash are taken from."""
    bar_luma: float = Field(10.0, ge=0, le=255)
    """A row or column is part of a black bar when its mean luma (0..255) never rises above this."""


@dataclass(slots=True)
class _SampledFrame:
    """A frame that the slow measures were taken from."""

    seconds: float
    sharpness: float
    picture_hash: str
    row_means: Means
    column_means: Means


def _numbers() -> array[float]:
    return array("d")


@dataclass(slots=True)
class _Series:
    """One number per frame. numpy reads a slice of an ``array`` without a copy of the rest, so the time for a clip does not depend on the
    length of the video."""

    seconds: array[float] = field(default_factory=_numbers)
    luma_mean: array[float] = field(default_factory=_numbers)
    luma_std: array[float] = field(default_factory=_numbers)
    motion: array[float] = field(default_factory=_numbers)
    change: array[float] = field(default_factory=_numbers)

    def frames(self, start: float, end: float) -> slice:
        """The frames at or after ``start`` and before ``end`` seconds."""
        return slice(bisect.bisect_left(self.seconds, start), bisect.bisect_left(self.seconds, end))


def analysis_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of the small picture that most measures are taken from."""
    factor = min(LONG_SIDE_PX / max(width, height), 1.0)
    return max(round(width * factor), 8), max(round(height * factor), 8)


class PictureTrack:
    """Collects the numbers of every frame of a video, in order of time."""

    def __init__(self, displayed_size: tuple[int, int], settings: PictureSettings) -> None:
        """``displayed_size``: (width, height) as displayed. Bars are measured in its pixels."""
        self.displayed_size, self.size = displayed_size, analysis_size(*displayed_size)
        self._settings = settings
        self._series = _Series()
        self._samples: list[_SampledFrame] = []
        self._recent: collections.deque[tuple[float, Luma]] = collections.deque()

    @property
    def times(self) -> Sequence[float]:
        return self._series.seconds

    def feed(self, picture: Picture, small: Luma) -> None:
        """Takes the numbers of one frame. ``small``: its luma at ``size``, 0..255."""
        now = picture.seconds
        mean, deviation = cv2.meanStdDev(small)
        series = self._series
        series.seconds.append(now)
        series.luma_mean.append(float(mean[0, 0]))
        series.luma_std.append(float(deviation[0, 0]))
        series.motion.append(self._change_since(now - MOTION_SECONDS, small))
        series.change.append(self._change_since(now - STILL_SECONDS, small))
        self._recent.append((now, small))
        while len(self._recent) > 1 and self._recent[1][0] <= now - STILL_SECONDS:
            self._recent.popleft()
        if not self._samples or now - self._samples[-1].seconds >= self._settings.sample_seconds - 0.001:
            self._samples.append(self._slow_measures(picture, small))

    def _change_since(self, then: float, small: Luma) -> float:
        """Mean absolute change of luma since the last frame at or before ``then``; nan when there is none."""
        earlier = next((frame for seconds, frame in reversed(self._recent) if seconds <= then + 0.001), None)
        if earlier is None:
            return float("nan")
        return float(cv2.norm(small, earlier, cv2.NORM_L1)) / small.size

    def _slow_measures(self, picture: Picture, small: Luma) -> _SampledFrame:
        luma = picture.luma()
        height, width = luma.shape
        lines = min(SHARPNESS_LINES, height)
        scaled = cv2.resize(luma, (max(round(width * lines / height), 8), lines), interpolation=cv2.INTER_AREA)
        stretch, zero = (1.0, 0.0) if picture.full_range else (255 / 219, 16.0)
        return _SampledFrame(
            picture.seconds,
            _sharpness(np.asarray(scaled, np.uint8)),
            picture_hash([small]),
            _means(luma, 1, zero, stretch),
            _means(luma, 0, zero, stretch),
        )

    def measures(self, start: float, end: float) -> PictureMeasures | None:
        """The measures of the clip ``[start, end)`` in seconds of the file. None: it has no frame."""
        frames = self._series.frames(start - 0.0005, end - 0.0005)
        if frames.start >= frames.stop:
            return None
        samples = self._samples_of(start, end)
        luma = np.asarray(self._series.luma_mean[frames])
        bars = find_bars([s.row_means for s in samples], [s.column_means for s in samples], self._settings.bar_luma)
        bars = self._as_displayed(bars, samples[0])
        evenly = np.linspace(0, len(samples) - 1, NUM_HASHES).round().astype(int)
        return PictureMeasures(
            num_frames=frames.stop - frames.start,
            luma_mean=_rounded(luma.mean()),
            luma_std=_rounded(np.mean(self._series.luma_std[frames])),
            black_share=_rounded((luma < BLACK_LUMA).mean()),
            white_share=_rounded((luma > WHITE_LUMA).mean()),
            motion=_rounded(_mean(self._within(self._series.motion, start + MOTION_SECONDS, end))),
            still_share=_rounded(self._still_share(start, end)),
            sharpness=round(float(np.median([sample.sharpness for sample in samples])), 6),
            bar_left_px=bars.left,
            bar_top_px=bars.top,
            bar_right_px=bars.right,
            bar_bottom_px=bars.bottom,
            picture_hash="".join(samples[i].picture_hash for i in evenly),
        )

    def _samples_of(self, start: float, end: float) -> list[_SampledFrame]:
        """The sampled frames in ``[start, end)``. If there is none, the nearest one."""
        first, last = (
            bisect.bisect_left(self._samples, seconds, key=lambda sample: sample.seconds)
            for seconds in (start - 0.0005, end)
        )
        around = self._samples[max(first - 1, 0) : first + 1]
        return self._samples[first:last] or [min(around, key=lambda sample: abs(sample.seconds - start))]

    def rhythm(self, start: float, end: float) -> tuple[Series, Series]:
        """Brightness (mean luma) and motion (mean change of luma in 0.2 s), both 0..255, on the grid of :mod:`pipeline.measure.rhythm`.

        Motion of the first 0.2 s is left out, as it compares with frames before the clip.
        """
        frames = self._series.frames(start - 0.0005, end - 0.0005)
        seconds = np.asarray(self._series.seconds[frames])
        motion = np.asarray(self._series.motion[frames])
        motion[seconds < start + MOTION_SECONDS - 0.002] = np.nan
        luma = np.asarray(self._series.luma_mean[frames])
        return on_grid(seconds, luma, start, end), on_grid(seconds, motion, start, end)

    def _as_displayed(self, bars: Bars, sample: _SampledFrame) -> Bars:
        """Bars in stored pixels, converted to displayed pixels: stored ones may not be square."""
        across = self.displayed_size[0] / sample.column_means.size
        down = self.displayed_size[1] / sample.row_means.size
        return Bars(
            round(bars.left * across), round(bars.top * down), round(bars.right * across), round(bars.bottom * down)
        )

    def _within(self, series: array[float], start: float, end: float) -> npt.NDArray[np.float64]:
        """The values of the series in ``[start, end)`` that are not nan."""
        values = np.asarray(series[self._series.frames(start - 0.002, end - 0.0005)])
        return np.asarray(values[~np.isnan(values)])

    def _still_share(self, start: float, end: float) -> float:
        """Share of frames that equal the frame half a second before. A clip that is shorter, or has one frame, is still."""
        change = self._within(self._series.change, start + STILL_SECONDS, end)
        return float((change < STILL_CHANGE).mean()) if change.size else 1.0


def _means(luma: Luma, axis: int, zero: float, stretch: float) -> Means:
    means = cv2.reduce(luma, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).reshape(-1)
    return ((means - zero) * stretch).clip(0, 255).round().astype(np.uint8)


def _sharpness(luma: Luma) -> float:
    """Variance of the Laplacian divided by the variance. The slight blur removes the steps of 8-bit luma, which would count as detail."""
    smooth = cv2.GaussianBlur(luma.astype(np.float32), (0, 0), 1.0)
    variance = max(float(cv2.meanStdDev(luma)[1][0, 0]) ** 2, 1.0)
    return float(cv2.Laplacian(smooth, cv2.CV_32F).var()) / variance


def find_bars(row_means: list[Means], column_means: list[Means], bar_luma: float) -> Bars:
    """Black bars in stored pixels: rows or columns that are black in every sampled frame, equally thick on both sides, with a sharp edge.

    A dark sky or a vignette is no bar: it is on one side only, or has no edge.
    """
    top, bottom = _bars_at_both_ends(np.max(row_means, axis=0), bar_luma)
    left, right = _bars_at_both_ends(np.max(column_means, axis=0), bar_luma)
    return Bars(left=left, top=top, right=right, bottom=bottom)


def _bars_at_both_ends(brightest: Means, bar_luma: float) -> tuple[int, int]:
    """Thickness of the bars at the beginning and the end. ``brightest``: highest mean luma of each row or column."""
    lit = np.flatnonzero(brightest > bar_luma)
    if lit.size == 0:
        return 0, 0
    size = brightest.size
    before, behind = int(lit[0]), size - 1 - int(lit[-1])
    thick_enough = min(before, behind) >= max(size * 0.01, 2)
    alike = abs(before - behind) <= max(0.25 * max(before, behind), size * 0.02)
    if not (thick_enough and alike):
        return 0, 0
    depth = max(size // 100, 3)
    inside = min(brightest[before : before + depth].max(), brightest[size - behind - depth : size - behind].max())
    outside = max(brightest[:before].max(), brightest[size - behind :].max())
    return (before, behind) if int(inside) - int(outside) > 12 and outside <= bar_luma else (0, 0)


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else 0.0


def _rounded(value: float | np.floating[np.typing.NBitBase]) -> float:
    """Rounds to four decimals, which is far more precise than the measures."""
    return round(float(value), 4)
