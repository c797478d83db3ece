"""The funnel: counts from listed rows to kept clips, by state and reason. All counts add up to the number of rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.dataset.manifest import Counts
from pipeline.dataset.source_records import ClipRecord, SourceRecord
from pipeline.schema import State

BAD_ROW = "bad_row"


@dataclass(slots=True)
class OutcomeCounts:
    """States of sources or clips, with the reasons of the rejected and the codes of the failed."""

    states: Counter[str] = field(default_factory=lambda: Counter({state.value: 0 for state in State}))
    reasons: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)

    def count(self, state: State, reason: str | None, failure: str | None) -> None:
        self.states[state] += 1
        if state is State.REJECTED:
            self.reasons[str(reason)] += 1
        elif state is State.FAILED:
            self.failures[failure or "clips_failed"] += 1

    @property
    def total(self) -> int:
        return sum(self.states.values())

    def to_counts(self) -> Counts:
        return Counts(
            states=dict(self.states),
            reasons=dict(self.reasons),
            failures=dict(self.failures),
            splits=dict(self.splits),
            classes=dict(self.classes),
        )


@dataclass(slots=True)
class Funnel:
    """Counts of a whole build. ``num_rows`` rows were listed; ``num_merged`` of them repeat another row."""

    num_rows: int
    num_merged: int
    sources: OutcomeCounts = field(default_factory=OutcomeCounts)
    clips: OutcomeCounts = field(default_factory=OutcomeCounts)
    num_videos: int = 0
    """Sources that were fetched and whose header could be read."""
    num_measured: int = 0
    num_scenes: int = 0
    measured_seconds: float = 0.0
    kept_seconds: float = 0.0

    def add_source(self, record: SourceRecord) -> None:
        """Counts a source by its final state. Its clips are counted by :meth:`add_clip`."""
        self.sources.count(record.state, record.reason, record.failure.code if record.failure else None)
        self.num_videos += record.facts is not None
        self.num_measured += record.decoded_seconds > 0
        self.num_scenes += record.num_scenes
        self.measured_seconds += record.decoded_seconds

    def add_clip(self, clip: ClipRecord, labels: tuple[str, ...], split: str | None) -> None:
        self.clips.count(clip.state, clip.reason, clip.failure.code if clip.failure else None)
        if clip.state is State.KEPT:
            self.kept_seconds += clip.span.duration_seconds
            self.clips.splits[str(split)] += 1
            self.clips.classes.update(labels)

    def add_bad_rows(self, num_rows: int) -> None:
        for _ in range(num_rows):
            self.sources.count(State.FAILED, None, BAD_ROW)

    def add_pending(self, num_sources: int) -> None:
        self.sources.states[State.PENDING] += num_sources

    def check(self) -> None:
        """Asserts that the counts of the sources add up to the number of rows."""
        assert self.sources.total == self.num_rows - self.num_merged, (self.sources, self.num_rows, self.num_merged)

    def lines(self) -> list[str]:
        """The funnel as lines of text."""
        merged = f" ({self.num_merged} repeat another)" if self.num_merged else ""
        pending = self.sources.states[State.PENDING]
        num_ended_before = self.sources.total - self.num_measured - pending
        lines = [
            f"{'rows':<9}{self.num_rows:>7}{merged}",
            f"{'sources':<9}{self.sources.total:>7}  {_states(self.sources)}",
            *_causes(self.sources),
            f"{'videos':<9}{self.num_videos:>7}  fetched, and with a header that can be read",
            f"{'measured':<9}{self.num_measured:>7}  {_hours(self.measured_seconds)} decoded; {num_ended_before} sources ended before that",
            f"{'scenes':<9}{self.num_scenes:>7}",
            f"{'clips':<9}{self.clips.total:>7}  {_states(self.clips)}",
            *_causes(self.clips),
            f"{'kept':<9}{self.clips.states[State.KEPT]:>7}  {_hours(self.kept_seconds)}",
        ]
        if self.clips.splits:
            lines.append(f"{'':>16}  splits: {_listed(self.clips.splits)}")
        if self.clips.classes:
            lines.append(f"{'':>16}  classes: {_listed(self.clips.classes)}")
        return lines

    def rows(self) -> list[dict[str, str | int]]:
        """The funnel as rows of a table with the columns what, state, cause, count."""
        table: list[dict[str, str | int]] = []
        for what, counts in (("sources", self.sources), ("clips", self.clips)):
            for state, count in counts.states.items():
                table.append({"what": what, "state": state, "cause": "", "count": count})
            for state, causes in (("rejected", counts.reasons), ("failed", counts.failures)):
                table += [{"what": what, "state": state, "cause": cause, "count": n} for cause, n in _ordered(causes)]
        return table

    def most_rejecting(self) -> str:
        """A sentence that names the most frequent cause of rejection or failure."""
        causes = self.clips.reasons + self.clips.failures or self.sources.reasons + self.sources.failures
        what = "clips" if self.clips.total else "sources"
        if not causes:
            return "there was nothing to judge"
        cause, count = _ordered(causes)[0]
        return f"{cause} took {count} of {self.clips.total or self.sources.total} {what}; all causes: {_listed(causes)}"


def _ordered(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(((name, count) for name, count in counts.items() if count), key=lambda item: (-item[1], item[0]))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in _ordered(counts))


def _states(counts: OutcomeCounts) -> str:
    return ", ".join(
        f"{counts.states[state]} {state}" for state in State if state is not State.PENDING or counts.states[state]
    )


def _causes(counts: OutcomeCounts) -> list[str]:
    return [
        f"{'':>16}  {name}: {_listed(causes)}"
        for name, causes in (("rejected", counts.reasons), ("failed", counts.failures))
        if causes
    ]


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"
