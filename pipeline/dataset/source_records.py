"""What is known of each source at its end, and where that is kept: with the output, so that any machine can go on."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from pipeline.errors import DamagedStateError
from pipeline.media.cut import CutClip
from pipeline.media.facts import MediaFacts
from pipeline.runtime.damage import (
    NAMED,
    OF_THE_FILE,
    UNREADABLE,
    as_json,
    check_name,
    described,
    read_named,
    write_named,
)
from pipeline.runtime.folder import Folder
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

LOG = logging.getLogger(__name__)

VERSION = 2
"""Raise it when records say other things: those of other versions are passed over, and their sources looked at again."""
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

    ``<folder>/<batch>.jsonl``          the sources of a finished batch: a line that lists them and tells the number of bytes behind
                                        it, then a record a line, by id
    ``<folder>/open/<source>.json``     sources of a batch that is still running

    Both appear whole; of one that was damaged since, what can be read is kept. A source that is in several files is taken first from a
    record of what the list says of it now, then from that of the highest :class:`Ending`, then from the batch of the last name.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name

    def put(self, record: SourceRecord) -> None:
        write_named(self._folder, f"{self._name}/open/{record.source.source_id}.json", record.to_json())

    def close_batch(self, batch_id: str, source_ids: Iterable[str]) -> None:
        """Gathers the open records of a batch in one file."""
        records = [record for source_id in sorted(source_ids) if (record := self._open_record(source_id))]
        self._write_batch(f"{batch_id}.jsonl", records)
        for record in records:
            self._folder.remove(f"{self._name}/open/{record.source.source_id}.json")

    def index(self, listed: Iterable[Source] = ()) -> dict[str, Entry]:
        """For each source that has a record. ``listed``: the sources as they are now.

        What cannot be read is no record: the log names the file, which is written anew with what can be read of it.
        """
        found: dict[str, Entry] = {}
        hashes = {source.source_id: source_hash(source) for source in listed}
        for name in self._batches():
            for source_id, (hash_, ending) in self._sources_of(name).items():
                _note(found, source_id, Entry(name, hashes.get(source_id) == hash_, Ending(ending)))
        for name in self._folder.names(f"{self._name}/open"):
            if not name.endswith(".json") or name.startswith("."):
                continue
            if (record := self._open_record(name.removesuffix(".json"))) is not None:
                hash_, ending = _entry(record)
                source_id = record.source.source_id
                _note(found, source_id, Entry(f"open/{name}", hashes.get(source_id) == hash_, ending))
        return found

    def read(self, wanted: Mapping[str, str]) -> Iterator[SourceRecord]:
        """Records in the order of ``wanted`` (source id to file name). Raises DamagedStateError at one that cannot be read.

        Neighbours from one file cost one read of it, also where a few files take turns, as those of two runs do.
        """
        lines_of = lru_cache(maxsize=MAX_FILES_OPEN)(self._lines)
        for source_id, name in wanted.items():
            try:
                record = _record_of(source_id, as_json(lines_of(name)[source_id]))
            except UNREADABLE as error:
                problem = f"cannot be read ({described(error)})"
                raise DamagedStateError([source_id], {f"{self._name}/{name}": problem}) from error
            yield record

    def repair(self) -> None:
        """Looks at every record of a finished batch, and takes those that cannot be read out of their files."""
        for name in self._batches():
            if len(self._readable(name)) != len(self._sources_of(name)):
                self._salvage(name, "not all of its records can be read")

    def forget(self, source_ids: Collection[str]) -> None:
        """Takes the records of these sources away, wherever they are."""
        for name in self._batches():
            if not self._sources_of(name).keys().isdisjoint(source_ids):
                kept = [record for record in self._readable(name) if record.source.source_id not in source_ids]
                self._write_batch(name, kept)
        for source_id in source_ids:
            self._folder.remove(f"{self._name}/open/{source_id}.json")

    def _batches(self) -> list[str]:
        return [name for name in self._folder.names(self._name) if name.endswith(".jsonl") and name[0] != "."]

    def _open_record(self, source_id: str) -> SourceRecord | None:
        return read_named(
            self._folder, f"{self._name}/open/{source_id}.json", lambda values: _record_of(source_id, values)
        )

    def _sources_of(self, name: str) -> Mapping[str, tuple[str, int]]:
        """For each source of a batch its hash and ending: by the first line alone, where the file is as long as that says."""
        path = f"{self._name}/{name}"
        try:
            with self._folder.open(path) as file:
                first = file.readline()
                num_bytes = file.seek(0, io.SEEK_END) - len(first)
        except OSError as error:
            if error.errno not in OF_THE_FILE:
                raise
            LOG.warning("%s/%s cannot be read (%s): its sources are done again", self._folder, path, error.strerror)
            return {}
        try:
            header = as_json(first)
            sources = header["sources"]
            if not self._is_ours(header):
                LOG.info("%s/%s is of another version or recipe: its sources are looked at again", self._folder, path)
                return {}
            if header["num_bytes"] != num_bytes:
                raise ValueError(f"{num_bytes} bytes of records, not {header['num_bytes']}")
            return {source_id: (str(hash_), int(ending)) for source_id, (hash_, ending) in sources.items()}
        except (*UNREADABLE, AttributeError) as error:
            return self._salvage(name, described(error))

    def _salvage(self, name: str, problem: str) -> dict[str, tuple[str, int]]:
        """Writes a damaged file anew with the records that can be read; returns their sources."""
        records = self._readable(name)
        LOG.warning(
            "%s/%s/%s is damaged (%s): records of %d sources can be read, its others are done again",
            *(self._folder, self._name, name, problem, len(records)),
        )
        self._write_batch(name, records)
        return {record.source.source_id: _entry(record) for record in records}

    def _readable(self, name: str) -> list[SourceRecord]:
        records: list[SourceRecord] = []
        try:
            content = self._folder.read_bytes(f"{self._name}/{name}")
        except OSError as error:
            if error.errno not in OF_THE_FILE:
                raise
            return records
        for line in content.splitlines():
            with contextlib.suppress(*UNREADABLE):  # the first line is no record either
                values = as_json(line)
                if "sources" in values and not self._is_ours(values):
                    return []
                records.append(SourceRecord.from_json(values))
        return records

    def _is_ours(self, header: Mapping[str, Any]) -> bool:
        """By the first line of a batch. Before it was written there, none said under which recipe it is kept."""
        return bool(header.get("version", 1) == VERSION and header.get(NAMED, self._name) == self._name)

    def _write_batch(self, name: str, records: Sequence[SourceRecord]) -> None:
        if not records:
            self._folder.remove(f"{self._name}/{name}")
            return
        lines = b"".join(_json(record.to_json()) + b"\n" for record in records)
        entries = {record.source.source_id: _entry(record) for record in records}
        header = {"version": VERSION, NAMED: self._name, "num_bytes": len(lines), "sources": entries}
        self._folder.write_bytes(f"{self._name}/{name}", _json(header) + b"\n" + lines)

    def contents(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, str | None, str | None]]:
        """For each source of ``wanted``, as :meth:`read` takes it: its id, the SHA-256 of the file that its record is of, and where there
        is none what was looked at instead (see :data:`LOOKED_AT`). Without reading the records as a whole: there may be many.
        Damaged ones are passed over: they are found when they are read."""
        lines_of = lru_cache(maxsize=MAX_FILES_OPEN)(self._lines)
        for source_id, name in wanted.items():
            with contextlib.suppress(*UNREADABLE):
                line = lines_of(name)[source_id]
                if content := _CONTENT.search(line):
                    yield source_id, content[1].decode(), None
                else:
                    yield source_id, None, as_json(line)["provenance"].get(LOOKED_AT)

    def _lines(self, name: str) -> dict[str, bytes]:
        """The records of a file by source, not parsed."""
        content = self._folder.read_bytes(f"{self._name}/{name}")
        if not name.endswith(".jsonl"):
            return {name.removeprefix("open/").removesuffix(".json"): content}
        header, *lines = content.splitlines()
        return dict(zip(as_json(header)["sources"], lines, strict=True))


def _json(values: Any) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def _record_of(source_id: str, values: Mapping[str, Any]) -> SourceRecord:
    record = SourceRecord.from_json({name: value for name, value in values.items() if name != NAMED})
    check_name(record.source.source_id, source_id)
    return record


def _entry(record: SourceRecord) -> tuple[str, Ending]:
    return source_hash(record.source), record.ending


def _note(found: dict[str, Entry], source_id: str, entry: Entry) -> None:
    if source_id not in found or entry[1:] >= found[source_id][1:]:
        found[source_id] = entry
