"""Assigns a split to each clip, by a stable hash of its source. Related sources share a split.

A source keeps its split when other sources are added, unless one of them relates it to a source of another split.
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
"""In order of precedence: if related sources are listed in several splits, the first of these is used."""


class SplitSettings(Settings):
    """Shares of the sources. They are drawn by a hash of the ids, so small datasets deviate from them. The three add up to 1."""

    train: float = Field(default=0.9, ge=0, le=1)
    """Share for training."""
    validation: float = Field(default=0.05, ge=0, le=1)
    """Share for choosing settings."""
    test: float = Field(default=0.05, ge=0, le=1)
    """Share for the final evaluation."""
    seed: int = 0
    """Changes which sources are drawn."""

    @model_validator(mode="after")
    def _add_up(self) -> SplitSettings:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, validation and test must add up to 1, got {total:g}")
        return self


@dataclass(frozen=True, slots=True)
class SplitItem:
    """A clip as :func:`assign_splits` needs it."""

    key: str
    source_id: str
    video_id: str | None = None
    """Equal for sources that are sections of one video, such as the file's SHA-256. None: not shared with another source."""
    wanted: str | None = None
    """The split that the source list names. None: none."""


@dataclass(frozen=True, slots=True)
class SplitConflict:
    """Sources that must share a split were listed in different splits. ``split`` is the one that is used."""

    split: str
    moved: tuple[str, ...]
    """Ids of the sources that were listed in another split, sorted."""


@dataclass(frozen=True, slots=True)
class Splits:
    """Result of :func:`assign_splits`."""

    of: dict[str, str]
    """Split of each clip, by key, in the order of the keys."""
    conflicts: tuple[SplitConflict, ...]


def assign_splits(items: Iterable[SplitItem], related: Iterable[Sequence[str]], settings: SplitSettings) -> Splits:
    """Splits of all clips. ``related``: groups of keys that must share a split; a key that is no item's relates the others, too.

    Raises UserError if a source is listed in a split that does not exist.
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
        listed = {split for source in sources for split in wanted.get(source, ())}
        split = min(listed, key=SPLITS.index) if listed else _drawn(sources[0], settings)
        split_of |= dict.fromkeys(sources, split)
        moved = tuple(source for source in sources if wanted.get(source, set()) - {split})
        if moved:
            conflicts.append(SplitConflict(split, moved))
    return Splits({key: split_of[source_of[key]] for key in sorted(source_of)}, tuple(conflicts))


def _drawn(group_id: str, settings: SplitSettings) -> str:
    """The split of a group, drawn by its hash. ``group_id``: the smallest source id of the group."""
    place = unit_interval("split", settings.seed, group_id)
    for split in SPLITS[:-1]:
        share: float = getattr(settings, split)
        if place < share:
            return split
        place -= share
    return "train" if settings.train else "validation"
