"""The outcomes of sources, from one pass over ``ledger.jsonl``, and the times of stages, from one over ``timings.jsonl``.

Memory does not grow with the number of clips.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from pipeline.dataset.ledger import LEDGER_NAME, TIMINGS_NAME, entry_of
from pipeline.dataset.source_records import WAITED
from pipeline.report.advice import about_failure
from pipeline.runtime.bounded import reading_failures
from pipeline.runtime.folder import Folder
from pipeline.schema import State

logger = logging.getLogger(__name__)

MAX_EXAMPLES = 3
MAX_NOTHING = 100
MAX_HOSTS = 20


@dataclass(slots=True)
class Outcomes:
    """Counts of sources by state, reason, failure and host."""

    states: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    """By (``source`` or ``clip``, stage, code)."""
    nothing: list[dict[str, Any]] = field(default_factory=list)
    """The first sources that gave no clip, with their reason or error."""
    num_nothing: int = 0
    hosts: dict[str, Counter[str]] = field(default_factory=dict)
    num_scenes: int = 0
    num_with_clips: int = 0
    num_damaged_lines: int = 0
    found: bool = True
    """False where the file is missing or cannot be read to its end."""

    @property
    def total(self) -> int:
        return sum(self.states.values())

    def add(self, entry: Mapping[str, Any]) -> None:
        state, clips = str(entry["state"]), entry.get("clips") or []
        self.states[state] += 1
        self.num_scenes += int(entry.get("num_scenes") or 0)
        self.num_with_clips += bool(clips)
        host = self.hosts.setdefault(_host(entry.get("url")), Counter())
        host["sources"] += 1
        host[state] += 1
        host["clips"] += len(clips)
        host["kept_clips"] += sum(clip.get("state") == State.KEPT for clip in clips)
        if state == State.REJECTED:
            self.reasons[str(entry.get("reason"))] += 1
        if failure := entry.get("failure"):
            self._fail("source", failure, entry, None)
        for clip in clips:
            if failure := clip.get("failure"):
                self._fail("clip", failure, entry, clip.get("key"))
        if state in (State.REJECTED, State.FAILED):
            self.num_nothing += 1
            if len(self.nothing) < MAX_NOTHING:
                cause = entry.get("reason") or (entry.get("failure") or {}).get("code") or "clips_failed"
                detail = entry.get("detail") or (entry.get("failure") or {}).get("message") or ""
                self.nothing.append(
                    {
                        "source_id": entry.get("source_id"),
                        "url": entry.get("url"),
                        "state": state,
                        "cause": str(cause),
                        "detail": str(detail)[:300],
                        "listed_at": entry.get("listed_at"),
                    }
                )

    def _fail(self, what: str, failure: Mapping[str, Any], entry: Mapping[str, Any], key: str | None) -> None:
        stage, code = str(failure.get("stage")), str(failure.get("code"))
        group = self.failures.setdefault(
            (what, stage, code),
            {
                "what": what,
                "stage": stage,
                "code": code,
                "count": 0,
                "advice": about_failure(code),
                "transient": bool(failure.get("transient")),
                "examples": [],
            },
        )
        group["count"] += 1
        if len(group["examples"]) < MAX_EXAMPLES:
            group["examples"].append(
                {
                    "source_id": entry.get("source_id"),
                    "key": key,
                    "url": entry.get("url"),
                    "listed_at": entry.get("listed_at"),
                    "message": str(failure.get("message", ""))[:500],
                }
            )

    def failure_list(self) -> list[dict[str, Any]]:
        """Groups of failures, the most frequent first."""
        return sorted(self.failures.values(), key=lambda group: (-group["count"], group["code"], group["stage"]))

    def host_list(self) -> list[dict[str, Any]]:
        """Counts by host, the hosts with most sources first."""
        named: list[dict[str, Any]] = [
            {"host": host, **{name: counts[name] for name in _HOST_COUNTS}} for host, counts in self.hosts.items()
        ]
        return sorted(named, key=_most_sources)[:MAX_HOSTS]


def _most_sources(host: Mapping[str, Any]) -> tuple[int, str]:
    return -host["sources"], host["host"]


_HOST_COUNTS = ("sources", "kept", "rejected", "failed", "clips", "kept_clips")


def read_outcomes(folder: Folder) -> Outcomes:
    """A ledger that is missing gives empty outcomes (``found`` is False); lines that cannot be read are counted."""
    outcomes = Outcomes()
    for entry in _lines(folder, LEDGER_NAME, outcomes):
        outcomes.add(entry)
    return outcomes


def read_timings(folder: Folder) -> dict[str, Any]:
    """Seconds of work by stage (sum, share, median and 95 % quantile of a source), of waiting, and of the slowest sources."""
    seconds: dict[str, array[float]] = {}
    slowest: list[tuple[float, str, dict[str, float]]] = []
    waited_seconds = 0.0
    reading = Outcomes()
    for entry in _lines(folder, TIMINGS_NAME, reading):
        stages = {n: float(v) for n, v in entry.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        waited_seconds += stages.pop(WAITED, 0.0)
        for name, value in stages.items():
            seconds.setdefault(name, array("d")).append(value)
        slowest.append((sum(stages.values()), str(entry.get("source_id")), stages))
        if len(slowest) > 1000:
            slowest = sorted(slowest, key=lambda each: -each[0])[:10]
    total = sum(sum(each) for each in seconds.values())
    stage_rows = [
        {
            "stage": name,
            "seconds": round(sum(each), 3),
            "sources": len(each),
            "share": round(sum(each) / total, 4) if total else 0.0,
            "median_seconds": round(float(np.median(each)), 3),
            "p95_seconds": round(float(np.quantile(each, 0.95)), 3),
        }
        for name, each in seconds.items()
    ]
    slowest.sort(key=lambda each: (-each[0], each[1]))
    return {
        "seconds": round(total, 3),
        "waited_seconds": round(waited_seconds, 3),
        "stages": stage_rows,
        "slowest": [
            {"source_id": name, "seconds": round(whole, 3), "stages": parts} for whole, name, parts in slowest[:10]
        ],
        "damaged_lines": reading.num_damaged_lines,
        "found": reading.found,
    }


def _lines(folder: Folder, name: str, outcomes: Outcomes) -> Iterator[dict[str, Any]]:
    try:
        with folder.open(name) as file:
            for line in file:
                entry = entry_of(line)
                if entry is None or (name == LEDGER_NAME and "state" not in entry):
                    outcomes.num_damaged_lines += 1
                else:
                    yield entry
    except reading_failures() as error:
        if not isinstance(error, FileNotFoundError):
            logger.warning("%s/%s cannot be read: %s", folder, name, error)
        outcomes.found = False


def _host(url: Any) -> str:
    if not isinstance(url, str):
        return "(row that cannot be read)"
    try:
        return urlsplit(url).hostname or "local files"
    except ValueError:
        return "(other)"
