"""What is known of each source at its end, and where that is kept: with the output, so that any machine can go on."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from pipeline.cut import CutClip
from pipeline.facts import MediaFacts
from pipeline.schema import (
    AgreementMeasures,
    Failure,
    PictureMeasures,
    Reason,
    SoundMeasures,
    Source,
    Span,
    State,
    TimeMeasures,
    clip_key,
    flat,
    from_flat,
    stable_hash,
)
from pipeline.storage import Folder

WAITED = "waited"
"""Beside the stages in ``timings``: seconds that the source waited for a slot, a host, or another source's turn."""
LOOKED_AT = "looked_at"
"""In the provenance of a record that is of no file: names what lay there when it failed; empty where nothing did."""
_CONTENT = re.compile(rb'"content_sha256":"([0-9a-f]{64})"')
"""In the line of a record. Within a text of it the quotation marks would be escaped."""
MAX_FILES_OPEN = 4
"""Files of records that are held in memory while records are read one after the other."""


class Ending(IntEnum):
    """How much a record says of the source: of several the highest holds."""

    PASSING = 0
    """It failed, at least in part, and may fare better the next time."""
    FAILED = 1
    """It failed, at least in part: another run with the same recipe would end alike."""
    WHOLE = 2


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """One measured clip. ``span`` is in the source's timeline. ``cut`` is there when it was kept and cut."""

    scene_index: int
    span: Span
    state: State
    picture: PictureMeasures
    sound: SoundMeasures | None
    agreement: AgreementMeasures | None = None
    reason: Reason | None = None
    detail: str = ""
    failure: Failure | None = None
    cut_key: str | None = None
    cut: CutClip | None = None
    in_time: TimeMeasures | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "scene_index": self.scene_index,
            "span": [self.span.start_ms, self.span.end_ms],
            "state": self.state,
            "picture": flat(self.picture),
            "sound": flat(self.sound) if self.sound else None,
            "in_time": flat(self.in_time) if self.in_time else None,
            "agreement": flat(self.agreement) if self.agreement else None,
            "reason": self.reason,
            "detail": self.detail,
            "failure": flat(self.failure) if self.failure else None,
            "cut_key": self.cut_key,
            "cut": self.cut.to_json() if self.cut else None,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ClipRecord:
        return cls(
            scene_index=values["scene_index"],
            span=Span(*values["span"]),
            state=State(values["state"]),
            picture=from_flat(PictureMeasures, values["picture"]),
            sound=from_flat(SoundMeasures, values["sound"]) if values["sound"] else None,
            in_time=from_flat(TimeMeasures, values["in_time"]) if values["in_time"] else None,
            agreement=from_flat(AgreementMeasures, values["agreement"]) if values["agreement"] else None,
            reason=Reason(values["reason"]) if values["reason"] else None,
            detail=values["detail"],
            failure=from_flat(Failure, values["failure"]) if values["failure"] else None,
            cut_key=values["cut_key"],
            cut=CutClip.from_json(values["cut"]) if values["cut"] else None,
        )


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """What became of one source, before the rules that look at the whole dataset."""

    source: Source
    state: State
    reason: Reason | None = None
    detail: str = ""
    failure: Failure | None = None
    content_sha256: str | None = None
    offset_ms: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    facts: MediaFacts | None = None
    num_scenes: int = 0
    decoded_seconds: float = 0.0
    measured_key: str | None = None
    embedded_key: str | None = None
    clips: tuple[ClipRecord, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds of work of each stage in the run that did it, and of waiting in all of them (``waited``)."""

    @property
    def ending(self) -> Ending:
        failures = [failure for failure in (self.failure, *(clip.failure for clip in self.clips)) if failure]
        if any(failure.transient for failure in failures):
            return Ending.PASSING
        return Ending.FAILED if failures else Ending.WHOLE

    def key_of(self, clip: ClipRecord) -> str:
        return clip_key(self.source.source_id, clip.span)

    def to_json(self) -> dict[str, Any]:
        return {
            "source": flat(self.source),
            "state": self.state,
            "reason": self.reason,
            "detail": self.detail,
            "failure": flat(self.failure) if self.failure else None,
            "content_sha256": self.content_sha256,
            "offset_ms": self.offset_ms,
            "provenance": dict(self.provenance),
            "facts": self.facts.to_json() if self.facts else None,
            "num_scenes": self.num_scenes,
            "decoded_seconds": self.decoded_seconds,
            "measured_key": self.measured_key,
            "embedded_key": self.embedded_key,
            "clips": [clip.to_json() for clip in self.clips],
            "timings": dict(self.timings),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SourceRecord:
        return cls(
            **{
                **values,
                "source": source_from_json(values["source"]),
                "state": State(values["state"]),
                "reason": Reason(values["reason"]) if values["reason"] else None,
                "failure": from_flat(Failure, values["failure"]) if values["failure"] else None,
                "facts": MediaFacts.from_json(values["facts"]) if values["facts"] else None,
                "clips": tuple(ClipRecord.from_json(clip) for clip in values["clips"]),
            }
        )


def source_from_json(values: Mapping[str, Any]) -> Source:
    return Source(**{**values, "labels": tuple(values["labels"])})


def source_hash(source: Source) -> str:
    """Changes with anything that the list says of a source."""
    return stable_hash(json.dumps(flat(source), sort_keys=True, default=str))


class Entry(NamedTuple):
    """Where the record of a source is, and what it is worth."""

    name: str
    is_current: bool
    """Whether it is of what the list says of the source now."""
    ending: Ending


class DoneRecords:
    """The records of finished sources, under one recipe.

    ``<folder>/<batch>.jsonl``          the sources of a finished batch: a line that lists them, then a record a line, by id
    ``<folder>/open/<source>.json``     sources of a batch that is still running

    Both appear whole. A source that is in several files is taken first from a record of what the list says of it now, then from that of
    the highest :class:`Ending`, then from the batch of the last name.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name

    def put(self, record: SourceRecord) -> None:
        self._folder.write_json(f"{self._name}/open/{record.source.source_id}.json", record.to_json())

    def close_batch(self, batch_id: str, source_ids: Iterable[str]) -> None:
        """Gathers the open records of a batch in one file."""
        records = [self._folder.read_json(f"{self._name}/open/{source_id}.json") for source_id in sorted(source_ids)]
        header = {"sources": {r["source"]["source_id"]: _entry(SourceRecord.from_json(r)) for r in records}}
        lines = [json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in (header, *records)]
        self._folder.write_bytes(f"{self._name}/{batch_id}.jsonl", ("\n".join(lines) + "\n").encode())
        for record in records:
            self._folder.remove(f"{self._name}/open/{record['source']['source_id']}.json")

    def index(self, listed: Iterable[Source] = ()) -> dict[str, Entry]:
        """For each source that has a record. ``listed``: the sources as they are now."""
        found: dict[str, Entry] = {}
        hashes = {source.source_id: source_hash(source) for source in listed}
        for name in self._folder.names(self._name):
            if name.endswith(".jsonl"):
                with self._folder.open(f"{self._name}/{name}") as file:
                    header = json.loads(file.readline())
                for source_id, (hash_, ending) in header["sources"].items():
                    _note(found, source_id, Entry(name, hashes.get(source_id) == hash_, Ending(ending)))
        for name in self._folder.names(f"{self._name}/open"):
            if name.endswith(".json") and not name.startswith("."):
                record = SourceRecord.from_json(self._folder.read_json(f"{self._name}/open/{name}"))
                hash_, ending = _entry(record)
                source_id = record.source.source_id
                _note(found, source_id, Entry(f"open/{name}", hashes.get(source_id) == hash_, ending))
        return found

    def read(self, wanted: Mapping[str, str]) -> Iterator[SourceRecord]:
        """Records in the order of ``wanted`` (source id to file name).

        Neighbours from one file cost one read of it, also where a few files take turns, as those of two runs do.
        """
        lines_of = lru_cache(maxsize=MAX_FILES_OPEN)(self._lines)
        for source_id, name in wanted.items():
            yield SourceRecord.from_json(json.loads(lines_of(name)[source_id]))

    def contents(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, str | None, str | None]]:
        """For each source of ``wanted``, as :meth:`read` takes it: its id, the SHA-256 of the file that its record is of, and where there
        is none what was looked at instead (see :data:`LOOKED_AT`). Without reading the records as a whole: there may be many."""
        lines_of = lru_cache(maxsize=MAX_FILES_OPEN)(self._lines)
        for source_id, name in wanted.items():
            line = lines_of(name)[source_id]
            if found := _CONTENT.search(line):
                yield source_id, found[1].decode(), None
            else:
                yield source_id, None, json.loads(line)["provenance"].get(LOOKED_AT)

    def forget(self, source_ids: Collection[str]) -> None:
        """Removes all records of these sources, so that they are carried again. For the one process that plans."""
        gone = set(source_ids)
        for source_id in gone:
            self._folder.remove(f"{self._name}/open/{source_id}.json")
        for name in self._folder.names(self._name):
            if not name.endswith(".jsonl"):
                continue
            with self._folder.open(f"{self._name}/{name}") as file:
                sources = json.loads(file.readline())["sources"]
            if gone.isdisjoint(sources):
                continue
            lines = self._lines(name)
            left = {source_id: entry for source_id, entry in sources.items() if source_id not in gone}
            header = json.dumps({"sources": left}, ensure_ascii=False, separators=(",", ":")).encode()
            if left:
                content = b"\n".join([header, *(lines[source_id] for source_id in left)]) + b"\n"
                self._folder.write_bytes(f"{self._name}/{name}", content)
            else:
                self._folder.remove(f"{self._name}/{name}")

    def _lines(self, name: str) -> dict[str, bytes]:
        """The records of a file by source, not parsed."""
        content = self._folder.read_bytes(f"{self._name}/{name}")
        if not name.endswith(".jsonl"):
            return {name.removeprefix("open/").removesuffix(".json"): content}
        header, *lines = content.splitlines()
        return dict(zip(json.loads(header)["sources"], lines, strict=True))


def _entry(record: SourceRecord) -> tuple[str, Ending]:
    return source_hash(record.source), record.ending


def _note(found: dict[str, Entry], source_id: str, entry: Entry) -> None:
    if source_id not in found or entry[1:] >= found[source_id][1:]:
        found[source_id] = entry
