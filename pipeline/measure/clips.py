"""Divides scenes into clips: windows of one length, with a margin at the cuts. Pure functions."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from pipeline.schema import Span
from pipeline.settings import Settings

HALF_MS = 0.0005
"""Half a millisecond, in seconds: the tolerance when frame times, which are rounded to milliseconds, are compared."""


class ClipSettings(Settings):
    """How a scene is divided.

    A scene of 27 s, ``length_seconds = 10``, ``margin_seconds = 0.25``, with a cut on both sides:

        |.[--- clip ---][--- clip ---]  tail  .|
    """

    length_seconds: float = Field(10.0, gt=0)
    """Length of a clip."""
    stride_seconds: float | None = Field(None, gt=0)
    """Time from the start of a clip to the start of the next. None: the length, so that clips do not overlap."""
    margin_seconds: float = Field(0.25, ge=0)
    """Time that is left out on each side of a cut. At the beginning and the end of the video nothing is left out."""
    min_seconds: float = Field(5.0, gt=0)
    """Shortest clip that is made."""
    tail: Literal["keep", "drop", "shift"] = "keep"
    """What is done with the rest after the last whole window. ``keep``: it becomes a shorter clip, if it has ``min_seconds``.
    ``drop``: it is left out. ``shift``: the last window is a whole one that ends with the scene and overlaps with the one before."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.min_seconds > self.length_seconds:
            raise ValueError(
                f"min_seconds ({self.min_seconds:g}) is longer than length_seconds ({self.length_seconds:g})"
            )
        return self


def windows(begin: float, end: float, settings: ClipSettings) -> Iterator[tuple[float, float]]:
    """The windows ``[start, stop)`` of the stretch from ``begin`` to ``end``, all in seconds."""
    length, stride = settings.length_seconds, settings.stride_seconds or settings.length_seconds
    start, stop = begin, begin
    while start + length <= end + HALF_MS:
        stop = min(start + length, end)
        yield start, stop
        start += stride
    rest = end - max(stop, begin)
    if rest <= HALF_MS or settings.tail == "drop":
        return
    if settings.tail == "shift" and stop > begin:
        yield end - length, end
    elif rest + HALF_MS >= settings.min_seconds:
        yield max(stop, begin), end


def split_scenes(
    scenes: Sequence[tuple[float, float]], times: Sequence[float], settings: ClipSettings
) -> list[tuple[int, Span]]:
    """The clips of a video's scenes: index of the scene and span, in the time of the file.

    Each clip starts on a frame (``times``, in seconds), so that picture and sound start together. A window that begins between two
    frames is moved to the later frame, with its end. The next windows are moved as far as needed, so that two clips never overlap
    more than their windows. Windows overlap only by ``stride_seconds`` and ``tail = "shift"``.
    """
    clips: list[tuple[int, Span]] = []
    for index, (scene_begin, scene_end) in enumerate(scenes):
        begin = scene_begin + (settings.margin_seconds if index else 0.0)
        end = scene_end - (settings.margin_seconds if index < len(scenes) - 1 else 0.0)
        last: _Placed | None = None
        for start, stop in windows(begin, end, settings):
            free_ms = 0 if last is None or _is_shifted(start, last, settings) else last.free_ms(start)
            span = _on_frames(start, stop, free_ms, round(end * 1000), times)
            if span is None:
                continue
            last = _Placed(start, stop, span.end_ms)
            if span.duration_ms + 1 >= settings.min_seconds * 1000:
                clips.append((index, span))
    return clips


class _Placed(NamedTuple):
    """A window in seconds, and the end of the clip that was made of it."""

    start: float
    stop: float
    clip_end_ms: int

    def free_ms(self, start: float) -> int:
        """Earliest start of the next clip, if its window begins at ``start``."""
        return self.clip_end_ms - max(round((self.stop - start) * 1000), 0)


def _is_shifted(start: float, last: _Placed, settings: ClipSettings) -> bool:
    """Whether a window is the last one of ``tail = "shift"``, which ends with the scene and overlaps with the one before."""
    stride = settings.stride_seconds or settings.length_seconds
    return settings.tail == "shift" and start < last.start + stride - HALF_MS


def _on_frames(start: float, stop: float, free_ms: int, end_ms: int, times: Sequence[float]) -> Span | None:
    """The window, moved so that it begins with its first frame at or after ``free_ms``, and cut off at ``end_ms``.

    None: there is no such frame.
    """
    delay = max(free_ms / 1000 - start, 0.0)
    frame = bisect.bisect_left(times, start + delay - HALF_MS)
    while frame < len(times) and round(times[frame] * 1000) < free_ms:
        frame += 1
    if frame == len(times) or times[frame] >= stop + delay:
        return None
    start_ms = round(times[frame] * 1000)
    stop_ms = min(start_ms + round((stop - start) * 1000), end_ms)
    return Span(start_ms, stop_ms) if stop_ms > start_ms else None
