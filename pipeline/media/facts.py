"""Properties of a file's picture and sound, from its header. Plain dataclasses that need no decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FACTS_VERSION = 4
"""Raised when other properties are read from a header: stored facts of other versions are not used."""


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """Properties of the picture. Width and height are as displayed: rotated, and with square pixels."""

    codec: str
    width: int
    height: int
    fps: float | None
    """Average frame rate. None: not in the header."""
    duration_seconds: float | None
    rotation_degrees: int
    sample_aspect: float
    """Width of a stored pixel divided by its height; 1.0 is square."""
    pixel_format: str
    is_hdr: bool
    interlaced: bool
    track: int = 0
    """Index of the track among all tracks of the file, from 0."""
    num_tracks: int = 1
    """Number of tracks of moving pictures."""
    chosen_by: str | None = None
    """The rule that chose the track (:mod:`pipeline.media.tracks`). None: there was one track only."""

    @property
    def short_side(self) -> int:
        return min(self.width, self.height)


@dataclass(frozen=True, slots=True)
class SoundFacts:
    """Properties of the sound."""

    codec: str
    sample_rate_hz: int
    num_channels: int
    duration_seconds: float | None
    track: int = 0
    num_tracks: int = 1
    chosen_by: str | None = None
    """``track``, ``num_tracks`` and ``chosen_by`` are as in :class:`VideoFacts`."""


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """Properties of a file. ``video`` or ``sound`` is None if there is no such track."""

    container: str
    duration_seconds: float | None
    video: VideoFacts | None
    sound: SoundFacts | None
    start_seconds: float = 0.0
    """The file's own time stamp at its beginning. All other times count from there."""
    part_shifts: tuple[float, ...] = ()
    """Of a file whose time stamps restart: seconds to add to those of each part (:mod:`pipeline.media.parts`)."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MediaFacts:
        video, sound = values["video"], values["sound"]
        return cls(
            values["container"],
            values["duration_seconds"],
            VideoFacts(**video) if video else None,
            SoundFacts(**sound) if sound else None,
            values.get("start_seconds", 0.0),  # not in records of older versions
            tuple(values.get("part_shifts", ())),
        )
