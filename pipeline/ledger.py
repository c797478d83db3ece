"""The ledger: what became of every source and every clip, one line of JSON for each source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.download_errors import mask_secrets
from pipeline.funnel import BAD_ROW
from pipeline.records import ClipRecord, SourceRecord
from pipeline.schema import Failure, State, flat
from pipeline.sources import RowProblem, SourceList
from pipeline.storage import Folder

LEDGER_NAME = "ledger.jsonl"
TIMINGS_NAME = "timings.jsonl"
"""Seconds of each stage for each source. Apart, because it is the only file that differs from one build to the next."""


def write_ledger(output: Folder, listed: SourceList, records: Iterable[SourceRecord]) -> None:
    """Bad rows first, then the sources that have come to an end (``records``, by id), then those that have not."""
    with output.writing(LEDGER_NAME) as ledger, output.writing(TIMINGS_NAME) as timings:
        for problem in listed.problems:
            ledger.write(_line(_bad_row(problem)))
        ended: set[str] = set()
        for record in records:
            ended.add(record.source.source_id)
            ledger.write(_line(_entry(record)))
            timings.write(_line({"source_id": record.source.source_id, **record.timings}))
        for source in sorted(listed.sources, key=lambda source: source.source_id):
            if source.source_id not in ended:
                ledger.write(
                    _line({"source_id": source.source_id, "url": mask_secrets(source.url), "state": State.PENDING})
                )


def _bad_row(problem: RowProblem) -> dict[str, Any]:
    failure = Failure("sources", BAD_ROW, problem.message)
    return {
        "source_id": problem.source_id,
        "state": State.FAILED,
        "failure": flat(failure),
        "listed_at": problem.listed_at,
        "row": problem.text,
    }


def _entry(record: SourceRecord) -> dict[str, Any]:
    source = record.source
    return {
        "source_id": source.source_id,
        "url": mask_secrets(source.url),
        "state": record.state,
        "reason": record.reason,
        "detail": record.detail,
        "failure": flat(record.failure) if record.failure else None,
        "listed_at": source.listed_at,
        "content_sha256": record.content_sha256,
        "num_scenes": record.num_scenes,
        "clips": [_clip(record.key_of(clip), clip) for clip in record.clips],
    }


def _clip(key: str, clip: ClipRecord) -> dict[str, Any]:
    return {
        "key": key,
        "state": clip.state,
        "reason": clip.reason,
        "detail": clip.detail,
        "failure": flat(clip.failure) if clip.failure else None,
    }


def _line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
