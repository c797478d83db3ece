"""Which split a clip belongs to: by its source and all that is related to it, through a hash that never changes.

A source keeps its split when others are added, unless an addition ties it to another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import Field, model_validator
from scipy.cluster.hierarchy import DisjointSet

from pipeline.errors import UserError
from pipeline.schema import unit_interval
from pipeline.settings import Settings

SPLITS = ("test", "validation", "train")
"""The most held-out first."""


class SplitSettings(Settings):
    """Shares of the sources, by a hash of their ids: small datasets come out uneven. The three add up to 1."""

    train: float = Field(default=0.9, ge=0, le=1)
    """Share for fitting."""
    validation: float = Field(default=0.05, ge=0, le=1)
    """Share for choosing settings."""
    test: float = Field(default=0.05, ge=0, le=1)
    """Share for the last look."""
    seed: int = 0
    """Another seed, another draw."""

    @model_validator(mode="after")
    def _add_up(self) -> SplitSettings:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, validation and test must add up to 1, got {total:g}")
        return self


@dataclass(frozen=True, slots=True)
class SplitItem:
    """What :func:`assign_splits` knows of a clip."""

    key: str
    source_id: str
    video_id: str | None = None
    """The same for sources that are cut from one video, such as the file's SHA-256. None: its own."""
    wanted: str | None = None
    """The split that the source list names."""


@dataclass(frozen=True, slots=True)
class SplitConflict:
    """Sources that must share a split were listed in different ones; the most held-out one won."""

    split: str
    moved: tuple[str, ...]
    """Source ids that had been listed in another split, sorted."""


@dataclass(frozen=True, slots=True)
class Splits:
    """What :func:`assign_splits` decided."""

    of: dict[str, str]
    """Split of each clip, by key, in the order of the keys."""
    conflicts: tuple[SplitConflict, ...]


def assign_splits(items: Iterable[SplitItem], related: Iterable[Sequence[str]], settings: SplitSettings) -> Splits:
    """Splits for all clips. ``related``: groups of keys that must stay together; keys of no item tie the others too.

    Raises UserError where a source asks for a split that does not exist.
    """
    sets: DisjointSet = DisjointSet()

    def join(a: tuple[str, str], b: tuple[str, str]) -> None:
        sets.add(a)
        sets.add(b)
        sets.merge(a, b)

    source_of: dict[str, str] = {}
    wanted: dict[str, set[str]] = {}
    for item in items:
        source_of[item.key] = item.source_id
        join(("source", item.source_id), ("key", item.key))
        if item.video_id is not None:
            join(("source", item.source_id), ("video", item.video_id))
        if item.wanted is not None:
            if item.wanted not in SPLITS:
                raise UserError(f"source {item.source_id}: split {item.wanted!r} is none of {', '.join(SPLITS)}")
            wanted.setdefault(item.source_id, set()).add(item.wanted)
    for group in related:
        for key in group[1:]:
            join(("key", group[0]), ("key", key))
    members: dict[tuple[str, str], list[str]] = {}
    for source_id in sorted(set(source_of.values())):
        members.setdefault(sets[("source", source_id)], []).append(source_id)
    split_of: dict[str, str] = {}
    conflicts: list[SplitConflict] = []
    for sources in members.values():
        asked = {split for source in sources for split in wanted.get(source, ())}
        split = min(asked, key=SPLITS.index) if asked else _drawn(sources[0], settings)
        split_of |= dict.fromkeys(sources, split)
        moved = tuple(source for source in sources if wanted.get(source, set()) - {split})
        if moved:
            conflicts.append(SplitConflict(split, moved))
    return Splits({key: split_of[source_of[key]] for key in sorted(source_of)}, tuple(conflicts))


def _drawn(group_id: str, settings: SplitSettings) -> str:
    """``group_id``: the smallest source id of the group."""
    place = unit_interval("split", settings.seed, group_id)
    for split in SPLITS[:-1]:
        share: float = getattr(settings, split)
        if place < share:
            return split
        place -= share
    return "train" if settings.train else "validation"
