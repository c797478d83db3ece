"""The ledger: the outcome of every source and every clip, one line of JSON for each source.

``python -m pipeline.ledger show manifests/NAME URL_OR_ID`` shows the entry of one link.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.dataset.funnel import BAD_ROW
from pipeline.dataset.source_records import ClipRecord, SourceRecord
from pipeline.errors import ManifestError
from pipeline.runtime.bounded import reading_failures
from pipeline.runtime.folder import Folder
from pipeline.runtime.masking import mask_secrets
from pipeline.schema import Failure, State, flat
from pipeline.sources.lists import RowProblem, SourceList

LEDGER_NAME = "ledger.jsonl"
TIMINGS_NAME = "timings.jsonl"
"""Seconds of work of each stage for each source, and of waiting (``waited``). A file of its own, because no other file differs between
two builds of the same dataset."""

_STATES = frozenset(State)


def write_ledger(output: Folder, listed: SourceList, records: Iterable[SourceRecord]) -> None:
    """Writes bad rows first, then the sources with an outcome (``records``, sorted by id), then the pending ones."""
    with output.writing(LEDGER_NAME) as ledger, output.writing(TIMINGS_NAME) as timings:
        for problem in listed.problems:
            ledger.write(line_of(_bad_row(problem)))
        ended: set[str] = set()
        for record in records:
            ended.add(record.source.source_id)
            ledger.write(line_of(ledger_line(record)))
            timings.write(line_of({"source_id": record.source.source_id, **record.timings}))
        for source in sorted(listed.sources, key=lambda source: source.source_id):
            if source.source_id not in ended:
                ledger.write(
                    line_of({"source_id": source.source_id, "url": mask_secrets(source.url), "state": State.PENDING})
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


def ledger_line(record: SourceRecord) -> dict[str, Any]:
    """The ledger's entry of a source that has an outcome."""
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


def line_of(values: Mapping[str, Any]) -> bytes:
    """The values as a line of JSON in UTF-8."""
    return (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def read_lines(output: Folder, name: str) -> Iterator[dict[str, Any]]:
    """The entries of the ledger or of the timings, each a dict with a ``source_id``.

    Raises FileNotFoundError if there is no such file, and ManifestError, which names the line, if it is damaged.
    """
    try:
        with output.open(name) as file:
            for number, line in enumerate(file, 1):
                if (entry := entry_of(line)) is None or (name == LEDGER_NAME and "state" not in entry):
                    raise ManifestError(
                        f"{output}/{name}:{number} is damaged: run the build again, which writes it anew"
                    )
                yield entry
    except FileNotFoundError:
        raise
    except reading_failures() as error:
        raise ManifestError(f"{output}/{name} cannot be read ({error}): mend that, or run the build again") from error


def entry_of(line: bytes) -> dict[str, Any] | None:
    """Parses a line of the ledger or of the timings. None: it is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("source_id"), str):
        return None
    clips, failure = entry.get("clips") or [], entry.get("failure")
    if not isinstance(clips, list) or not all(_has_texts(clip, "key", "state") for clip in clips):
        return None
    failures = [failure, *(clip.get("failure") for clip in clips)]
    if not all(failure is None or _has_texts(failure, "stage", "code") for failure in failures):
        return None
    has_known_states = "state" not in entry or all(one["state"] in _STATES for one in (entry, *clips))
    return entry if has_known_states and isinstance(entry.get("url") or "", str) else None


def _has_texts(values: Any, *names: str) -> bool:
    """Whether ``values`` is a dict with a text under each of the names."""
    return isinstance(values, dict) and all(isinstance(values.get(name), str) for name in names)
