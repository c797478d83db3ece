"""Caps on the number of clips of one class and of one source. The clips of the highest quality stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import Field

from pipeline.schema import Reason, Verdict, stable_hash
from pipeline.settings import Settings


class BalanceSettings(Settings):
    """How many clips may stay."""

    max_clips_per_class: int | None = Field(default=None, ge=1)
    """At most this many clips with one label. A clip with several labels counts in each. None: no cap."""
    max_clips_per_source: int | None = Field(default=None, ge=1)
    """At most this many clips of one source. None: no cap."""
    seed: int = 0
    """Changes the choice among clips of equal quality."""


@dataclass(frozen=True, slots=True)
class BalanceItem:
    """A clip as :func:`balance` needs it."""

    key: str
    source_id: str
    labels: tuple[str, ...] = ()
    """A clip without labels belongs to no class."""
    quality: tuple[float, ...] = ()
    """The clip with the larger tuple has precedence; among equals, a hash of the key decides. Of equal length for all clips."""


def balance(items: Iterable[BalanceItem], settings: BalanceSettings) -> dict[str, Verdict]:
    """Verdicts of the clips over a cap, by key, sorted. The order of the input does not matter."""
    class_cap, source_cap = settings.max_clips_per_class, settings.max_clips_per_source
    if class_cap is None and source_cap is None:
        return {}
    by_hash = sorted(items, key=lambda item: (stable_hash("balance", settings.seed, item.key), item.key))
    in_class: Counter[str] = Counter()
    in_source: Counter[str] = Counter()
    verdicts: dict[str, Verdict] = {}
    for item in sorted(by_hash, key=lambda item: item.quality, reverse=True):
        labels = tuple(dict.fromkeys(item.labels))
        full = [label for label in labels if class_cap is not None and in_class[label] >= class_cap]
        if source_cap is not None and in_source[item.source_id] >= source_cap:
            detail = f"source {item.source_id} has its {source_cap} clips already"
            verdicts[item.key] = Verdict(Reason.SOURCE_FULL, detail)
        elif full:
            verdicts[item.key] = Verdict(Reason.CLASS_FULL, f"class {full[0]} has its {class_cap} clips already")
        else:
            in_source[item.source_id] += 1
            in_class.update(labels)
    return dict(sorted(verdicts.items()))
