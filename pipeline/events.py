"""What a running build tells those who watch it."""

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
    """Of work: what the source waited for others is left out."""
    media_seconds: float = 0.0
    """Length of the media that was worked on."""
    reused: bool = False
    """The work was done by an earlier run."""


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """One source has reached its end in this build (before the rules that look at the whole dataset)."""

    source_id: str
    state: State
    detail: str = ""
    """Reason, or ``code: message`` of the failure."""
    clips: Mapping[str, int] = field(default_factory=dict)
    """Number of clips by ``kept``, ``failed`` and each reason."""
    code: str = ""
    """The code of the failure; empty where it did not fail as a whole."""


Event = StageEvent | SourceEvent
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener that does nothing."""
