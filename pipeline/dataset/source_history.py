"""All that a build recorded of one source: from its ledger, its timings and its table of clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.bugs import BUG
from pipeline.dataset.ledger import LEDGER_NAME, TIMINGS_NAME, read_lines
from pipeline.dataset.tables import SAMPLES_NAME, read_table
from pipeline.errors import ManifestError
from pipeline.runtime.folder import Folder
from pipeline.runtime.masking import mask_secrets
from pipeline.schema import State
from pipeline.sources.links import canonical_url

SHOWN_MEASURES = ("loudness_lufs", "speech_share", "music_share", "still_share", "motion", "sharpness", "agreement")
"""Measures that are shown of each clip; ``--json`` has all of them."""


@dataclass(frozen=True, slots=True)
class SourceHistory:
    """What is recorded of one source."""

    entry: Mapping[str, Any]
    """Its entry of the ledger."""
    timings: Mapping[str, float]
    """Seconds by stage."""
    rows: Mapping[str, Mapping[str, Any]]
    """Rows of its clips in the table of samples, by key."""

    def to_json(self) -> dict[str, Any]:
        return {
            **self.entry,
            "timings": dict(self.timings),
            "measures": {key: dict(row) for key, row in self.rows.items()},
        }

    def lines(self) -> list[str]:
        """The history as lines of text."""
        entry = self.entry
        values = {
            "source": entry["source_id"],
            "link": entry.get("url"),
            "listed at": entry.get("listed_at"),
            "row": entry.get("row"),
            "outcome": _outcome(entry),
            "file": f"sha256 {entry['content_sha256']}" if entry.get("content_sha256") else None,
            "scenes": entry.get("num_scenes") or None,
            "seconds": ", ".join(f"{stage} {seconds:g}" for stage, seconds in self.timings.items()) or None,
        }
        lines = [f"{name:<10} {value}" for name, value in values.items() if value is not None]
        clips = entry.get("clips") or ()
        return [*lines, *(["clips"] if clips else []), *(line for clip in clips for line in self._clip(clip))]

    def _clip(self, clip: Mapping[str, Any]) -> Iterator[str]:
        row = self.rows.get(clip["key"], {})
        yield f"  {clip['key']}  {_outcome(clip)}"
        if row:
            times = f"{row['start_ms'] / 1000:g} to {row['end_ms'] / 1000:g} s"
            place = f", {row['split']}, in {row['shard']}" if row["shard"] else ""
            yield f"      {times}{place}"
            measured = [(name, row.get(name)) for name in SHOWN_MEASURES]
            yield "      " + ", ".join(f"{name} {value:.4g}" for name, value in measured if value is not None)


def _outcome(entry: Mapping[str, Any]) -> str:
    failure = entry.get("failure")
    if failure:
        if failure["code"] == BUG:
            next_run = (
                "a bug of this program: another version tries again, this one with execution.try_failed_again=true"
            )
        elif failure["transient"]:
            next_run = "another run tries again"
        else:
            next_run = (
                "another run would fail in the same way and tries again only with execution.try_failed_again=true"
            )
        return f"failed at {failure['stage']}: {failure['code']}: {failure['message']} ({next_run})"
    if entry["state"] == State.PENDING:
        return "pending: no run has finished it; the next run continues with it"
    outcome = ": ".join(part for part in (entry["state"], entry.get("reason")) if part)
    return f"{outcome} ({entry['detail']})" if entry.get("detail") else outcome


def source_histories(output: Folder, wanted: str) -> list[SourceHistory]:
    """Histories of the sources that ``wanted`` names: an id, a link (secrets in it are ignored), or the key of a clip.

    Raises ManifestError if there is no ledger, or if it is damaged.
    """
    link = canonical_url(mask_secrets(wanted))
    entries = [
        entry
        for entry in _lines(output, LEDGER_NAME)
        if entry["source_id"] == wanted
        or canonical_url(entry.get("url") or "") == link
        or any(clip["key"] == wanted for clip in entry.get("clips") or ())
    ]
    ids = {entry["source_id"] for entry in entries}
    timings = {line.pop("source_id"): line for line in _lines(output, TIMINGS_NAME) if line["source_id"] in ids}
    rows = {row["key"]: row for row in _rows(output, sorted(ids))} if ids else {}
    return [
        SourceHistory(
            entry,
            timings.get(entry["source_id"], {}),
            {clip["key"]: rows[clip["key"]] for clip in entry.get("clips") or () if clip["key"] in rows},
        )
        for entry in entries
    ]


def _lines(output: Folder, name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from read_lines(output, name)
    except FileNotFoundError as error:
        raise ManifestError(f"{output}/{name} does not exist: it is written when a build ends") from error


def _rows(output: Folder, source_ids: Sequence[str]) -> Iterable[dict[str, Any]]:
    if not output.exists(SAMPLES_NAME):
        return
    for batch in read_table(output):
        is_wanted = pc.is_in(batch["source_id"], value_set=pa.array(source_ids, pa.string()))
        yield from batch.filter(is_wanted).to_pylist()
