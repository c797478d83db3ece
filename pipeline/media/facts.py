"""What a file's header says of its picture and sound. Plain records: whoever reads them needs no decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FACTS_VERSION = 3
"""Raise it when other things are read from a header: stored facts are then not used again."""


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What the header says of the picture. Width and height are as displayed: turned, and with square pixels."""

    codec: str
    width: int
    height: int
    fps: float | None
    """Average frame rate. None: the header does not say."""
    duration_seconds: float | None
    rotation_degrees: int
    sample_aspect: float
    """Width of a stored pixel over its height; 1.0 is square."""
    pixel_format: str
    is_hdr: bool
    interlaced: bool
    track: int = 0
    """Number of the track in the file, from 0, other kinds of tracks counted."""
    num_tracks: int = 1
    """Tracks of moving pictures that the file has."""
    chosen_by: str | None = None
    """What decided between them (:mod:`pipeline.media.tracks`). None: there was one."""

    @property
    def short_side(self) -> int:
        return min(self.width, self.height)


@dataclass(frozen=True, slots=True)
class SoundFacts:
    """What the header says of the sound."""

    codec: str
    sample_rate_hz: int
    num_channels: int
    duration_seconds: float | None
    track: int = 0
    num_tracks: int = 1
    chosen_by: str | None = None
    """The track, as in :class:`VideoFacts`."""


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """What the header says of a file. ``video`` or ``sound`` is None where there is no such track."""

    container: str
    duration_seconds: float | None
    video: VideoFacts | None
    sound: SoundFacts | None
    start_seconds: float = 0.0
    """What the file's own time stamps say at its beginning, which is time 0 everywhere else."""
    part_shifts: tuple[float, ...] = ()
    """Where the time stamps begin again: what is added to those of each part, in seconds (:mod:`pipeline.media.parts`)."""

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
            values.get("start_seconds", 0.0),  # records of an older version have none
            tuple(values.get("part_shifts", ())),
        )
