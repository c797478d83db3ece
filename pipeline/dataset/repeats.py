"""Notes for the build's summary on repeated content that the search for duplicates does not find: overlapping stretches of one file,
and clips too short to compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from pipeline.dataset.dedup import DedupSettings

MAX_NAMED = 10
MIN_SHARED = 0.5
"""Two stretches overlap if they share at least this share of the shorter one."""


@dataclass(frozen=True, slots=True, order=True)
class Stretch:
    """The file of a kept clip, and the clip's place in it."""

    content_sha256: str
    start_ms: int
    end_ms: int
    source_id: str

    @property
    def duration_ms(self) -> int:
        return self.end_ms - self.start_ms


def repeat_notes(stretches: Sequence[Stretch], settings: DedupSettings) -> list[str]:
    """Notes for the build's summary; empty if duplicates are not rejected. ``stretches``: of all kept clips."""
    if not settings.reject_duplicates:
        return []
    notes = []
    if num_short := sum(stretch.duration_ms < 1000 * settings.min_overlap_seconds for stretch in stretches):
        notes.append(
            f"{num_short} of {len(stretches)} kept clips are shorter than dedup.min_overlap_seconds ({settings.min_overlap_seconds:g} s): "
            "their sounds are not compared, and copies of them in other files are not found"
        )
    if sources := overlapping(stretches):
        more = f" and {len(sources) - MAX_NAMED} more" if len(sources) > MAX_NAMED else ""
        notes.append(
            f"clips of {len(sources)} sources share half of their time or more with a clip of another source that is the same file: "
            f"{', '.join(sources[:MAX_NAMED])}{more}. Their rows name sections that overlap: list one of them"
        )
    return notes


def overlapping(stretches: Iterable[Stretch]) -> list[str]:
    """The ids of sources with a clip that shares MIN_SHARED with a clip of another source, sorted."""
    source_ids: set[str] = set()
    for _, same_file in groupby(sorted(stretches), key=lambda stretch: stretch.content_sha256):
        earlier: list[Stretch] = []  # those that begin before the current stretch and end after its start
        for stretch in same_file:
            earlier = [other for other in earlier if other.end_ms > stretch.start_ms]
            for other in earlier:
                shared_ms = min(stretch.end_ms, other.end_ms) - stretch.start_ms
                shorter_ms = min(stretch.duration_ms, other.duration_ms)
                if stretch.source_id != other.source_id and shared_ms >= MIN_SHARED * shorter_ms:
                    source_ids |= {stretch.source_id, other.source_id}
            earlier.append(stretch)
    return sorted(source_ids)
