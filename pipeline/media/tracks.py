"""Chooses the tracks of picture and sound of a file. All code that reads files uses this, so that all read the same tracks.

Cover art and thumbnails are not considered. The container's default flag decides, then size, then length, then order. Tracks for
special purposes (comments, the visually impaired) come after all others, and tracks shorter than a tenth of the longest one last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import av
from av.stream import Disposition

COVERS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
ASIDES = (
    Disposition.comment | Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.clean_effects
    | Disposition.karaoke | Disposition.lyrics | Disposition.descriptions | Disposition.dependent | Disposition.metadata
)  # fmt: skip
STILL_CODECS = {"mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000"}
"""Codecs of still pictures: such a track without a length is taken for a single picture."""
SHORT_SHARE = 0.1
RULES = ("length: the others are far shorter", "purpose", "default flag", "size", "length", "order")

Stream = TypeVar("Stream", bound=av.stream.Stream)
Rank = tuple[bool, bool, bool, tuple[int, ...], float, int]


@dataclass(frozen=True, slots=True)
class ChosenTrack(Generic[Stream]):
    """The chosen track, and the number of tracks of its kind. ``decided_by``: the rule that put it before the next. None: it was the only
    one."""

    stream: Stream
    num_tracks: int
    decided_by: str | None


def picture_track(container: av.container.InputContainer) -> ChosenTrack[av.VideoStream] | None:
    """The track of moving pictures. None: there is none that can be decoded."""
    return _chosen(
        [s for s in container.streams.video if not s.disposition & COVERS and s.codec_context is not None],
        lambda stream: (stream.codec_context.width * stream.codec_context.height,),
    )


def sound_track(container: av.container.InputContainer) -> ChosenTrack[av.AudioStream] | None:
    """The track of sound. None: there is none that can be decoded."""
    return _chosen(
        [s for s in container.streams.audio if s.codec_context is not None and s.codec_context.sample_rate],
        lambda stream: (stream.codec_context.channels, stream.codec_context.sample_rate),
    )


def _chosen(streams: Sequence[Stream], size: Callable[[Stream], tuple[int, ...]]) -> ChosenTrack[Stream] | None:
    if not streams:
        return None
    longest = max(_seconds(stream) or 0.0 for stream in streams)

    def rank(stream: Stream) -> Rank:
        seconds, flags = _seconds(stream), stream.disposition
        return (
            not _is_short(stream, seconds, longest),
            not flags & ASIDES,
            bool(flags & Disposition.default),
            size(stream),
            seconds or 0.0,
            -stream.index,
        )

    first, *others = sorted(streams, key=rank, reverse=True)
    if not others:
        return ChosenTrack(first, 1, None)
    decided_by = next(
        name for name, ours, next_one in zip(RULES, rank(first), rank(others[0]), strict=True) if ours != next_one
    )
    return ChosenTrack(first, len(streams), decided_by)


def _is_short(stream: Any, seconds: float | None, longest: float) -> bool:
    if stream.frames == 1:
        return True
    if seconds is None:
        return stream.codec_context.codec.canonical_name in STILL_CODECS
    return seconds < SHORT_SHARE * longest


def _seconds(stream: Any) -> float | None:
    """Length of a track, from its header or, in Matroska, from the tag that most programs write."""
    if stream.duration is not None and stream.duration > 0 and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    with contextlib.suppress(KeyError, ValueError):
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return None
