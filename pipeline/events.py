"""Events that a running build sends to its listeners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.schema import State

Stage = Literal["fetch", "measure", "embed", "cut", "dedup", "split", "shard", "manifest"]


@dataclass(frozen=True, slots=True)
class StageEvent:
    """One source (or, from ``dedup`` on, one step of the whole dataset) went through one stage."""

    stage: Stage
    subject: str
    """Source id, or the name of the shard or file."""
    elapsed_seconds: float
    """Seconds of work. Time in which the source waited for other sources is not counted."""
    media_seconds: float = 0.0
    """Length of the media that was worked on."""
    reused: bool = False
    """Whether the result of an earlier run was used."""


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """One source has its outcome in this build (before the rules over the whole dataset)."""

    source_id: str
    state: State
    detail: str = ""
    """Reason, or ``code: message`` of the failure."""
    clips: Mapping[str, int] = field(default_factory=dict)
    """Number of clips by ``kept``, ``failed`` and each reason."""
    code: str = ""
    """Code of the source's failure; empty if the source as a whole did not fail."""


Event = StageEvent | SourceEvent
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener that does nothing, for callers that need no events."""
