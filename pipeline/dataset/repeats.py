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


def repeat_notes(stretches: Sequence[Stretch], settings: DedupSettings) -> list[str]:
    """Notes for the build's summary; empty if duplicates are not rejected. ``stretches``: of all kept clips."""
    if not settings.reject_duplicates:
        return []
    notes = []
    if num_short := sum(one.end_ms - one.start_ms < 1000 * settings.min_overlap_seconds for one in stretches):
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
    for _, group in groupby(sorted(stretches), key=lambda one: one.content_sha256):
        open_: list[Stretch] = []
        for one in group:
            open_ = [other for other in open_ if other.end_ms > one.start_ms]
            for other in open_:
                shared = min(one.end_ms, other.end_ms) - one.start_ms
                shorter = min(one.end_ms - one.start_ms, other.end_ms - other.start_ms)
                if one.source_id != other.source_id and shared >= MIN_SHARED * shorter:
                    source_ids |= {one.source_id, other.source_id}
            open_.append(one)
    return sorted(source_ids)
