"""Records of finished sources, stored in ``state`` beside the output, so that another run or machine can continue the build."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
from collections import Counter
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
"""Raised when the content of records changes. Records of other versions are ignored, and their sources are processed again."""
WAITED = "waited"
"""A key of ``timings`` beside the stages: seconds that the source waited for a slot, a host, or another source."""
LOOKED_AT = "looked_at"
"""A key of the provenance of a failed local source: identifies the file that was at its path; empty if there was none."""
_CONTENT = re.compile(rb'"content_sha256":"([0-9a-f]{64})"')
"""Matches the field in the line of a record. It cannot match inside a text, where quotation marks are escaped."""
MAX_FILES_OPEN = 4
"""Files of records that are in memory at once while records are read in order."""


class Ending(IntEnum):
    """How a source ended. Of several records of a source the one with the highest value is used."""

    PASSING = 0
    """It failed, at least in part, and a retry may help."""
    FAILED = 1
    """It failed, at least in part, and another run with the same recipe would fail in the same way."""
    WHOLE = 2
    """Neither the source nor one of its clips failed."""


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
    """Outcome of one source, before the rules over the whole dataset."""

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
    """Seconds of work of each stage, in the run that did it, and of waiting in all stages (``waited``)."""

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


def outcome_of_clips(clips: Sequence[tuple[State, Reason | None]]) -> tuple[State, Reason | None, str]:
    """State, reason and detail of a source from those of its clips: kept if any clip is kept, failed if any failed, else rejected."""
    if any(state is State.KEPT for state, _ in clips):
        return State.KEPT, None, ""
    num_by_cause = Counter(str(reason or state) for state, reason in clips)
    detail = ", ".join(f"{count} {cause}" for cause, count in num_by_cause.most_common())
    if any(state is State.FAILED for state, _ in clips):
        return State.FAILED, None, detail
    return State.REJECTED, Reason.NO_CLIP_KEPT, detail


def source_from_json(values: Mapping[str, Any]) -> Source:
    return Source(**{**values, "labels": tuple(values["labels"])})


def source_hash(source: Source) -> str:
    """Hash of a source's row: changes with every field of it."""
    return stable_hash(json.dumps(flat(source), sort_keys=True, default=str))


class Entry(NamedTuple):
    """Where the record of a source is stored, and whether it is preferred to others."""

    name: str
    """Name of the file, relative to the folder of the records."""
    is_current: bool
    """Whether the source was listed as it is listed now."""
    ending: Ending


class DoneRecords:
    """The records of finished sources, under one recipe.

    ``<folder>/<batch>.jsonl``          a finished batch: a header line with its sources and the number of bytes after that line,
                                        then one record per line, sorted by id
    ``<folder>/open/<source>.json``     sources of a batch that is still running

    Both are written atomically. Of a damaged batch the readable records are used. Of several records of a source the current one is
    used (:attr:`Entry.is_current`), then the one with the highest :class:`Ending`, then the one in the batch whose name sorts last.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name

    def put(self, record: SourceRecord) -> None:
        write_named(self._folder, f"{self._name}/open/{record.source.source_id}.json", record.to_json())

    def close_batch(self, batch_id: str, source_ids: Iterable[str]) -> None:
        """Moves the open records of a batch into one file."""
        records = [record for source_id in sorted(source_ids) if (record := self._open_record(source_id))]
        self._write_batch(f"{batch_id}.jsonl", records)
        for record in records:
            self._folder.remove(f"{self._name}/open/{record.source.source_id}.json")

    def index(self, listed: Iterable[Source] = ()) -> dict[str, Entry]:
        """An entry for each source that has a record. ``listed``: the sources as they are listed now.

        Damaged records are left out: the log names their file, which is rewritten with its readable records.
        """
        entries: dict[str, Entry] = {}
        hashes = {source.source_id: source_hash(source) for source in listed}
        for name in self._batches():
            for source_id, (hash_, ending) in self._sources_of(name).items():
                _keep_preferred(entries, source_id, Entry(name, hashes.get(source_id) == hash_, Ending(ending)))
        for name in self._folder.names(f"{self._name}/open"):
            if not name.endswith(".json") or name.startswith("."):
                continue
            if (record := self._open_record(name.removesuffix(".json"))) is not None:
                hash_, ending = _entry(record)
                source_id = record.source.source_id
                _keep_preferred(entries, source_id, Entry(f"open/{name}", hashes.get(source_id) == hash_, ending))
        return entries

    def read(self, wanted: Mapping[str, str]) -> Iterator[SourceRecord]:
        """Records in the order of ``wanted`` (source id to file name). Raises DamagedStateError at a damaged record.

        The last :data:`MAX_FILES_OPEN` files are cached, so that sources that alternate between a few files are read fast.
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
        """Parses every record of every finished batch, and removes the damaged ones from their files."""
        for name in self._batches():
            if len(self._readable(name)) != len(self._sources_of(name)):
                self._rewrite_readable(name, "not all of its records can be read")

    def forget(self, source_ids: Collection[str]) -> None:
        """Removes all records of these sources."""
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
        """Hash and ending of each source of a batch. Only the header is read if the file has the length that the header says."""
        path = f"{self._name}/{name}"
        try:
            with self._folder.open(path) as file:
                first = file.readline()
                num_bytes = file.seek(0, io.SEEK_END) - len(first)
        except OSError as error:
            if error.errno not in OF_THE_FILE:
                raise
            LOG.warning(
                "%s/%s cannot be read (%s): its sources are processed again", self._folder, path, error.strerror
            )
            return {}
        try:
            header = as_json(first)
            sources = header["sources"]
            if not self._is_ours(header):
                LOG.info("%s/%s is of another version or recipe: its sources are processed again", self._folder, path)
                return {}
            if header["num_bytes"] != num_bytes:
                raise ValueError(f"{num_bytes} bytes of records, not {header['num_bytes']}")
            return {source_id: (str(hash_), int(ending)) for source_id, (hash_, ending) in sources.items()}
        except (*UNREADABLE, AttributeError) as error:
            return self._rewrite_readable(name, described(error))

    def _rewrite_readable(self, name: str, problem: str) -> dict[str, tuple[str, int]]:
        """Rewrites a damaged file with its readable records; returns their sources as :meth:`_sources_of`."""
        records = self._readable(name)
        LOG.warning(
            "%s/%s/%s is damaged (%s): records of %d sources can be read, its other sources are processed again",
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
            with contextlib.suppress(*UNREADABLE):  # also skips the header, which is no record
                values = as_json(line)
                if "sources" in values and not self._is_ours(values):
                    return []
                records.append(SourceRecord.from_json(values))
        return records

    def _is_ours(self, header: Mapping[str, Any]) -> bool:
        """Whether a batch is of this version and recipe, by its header. Old headers do not name the recipe; they are accepted."""
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
        """For each source of ``wanted`` (as in :meth:`read`): its id, the SHA-256 of its file, and if there is none the value of
        :data:`LOOKED_AT` in its provenance. Does not parse whole records, which may be many. Damaged records are skipped: :meth:`read`
        reports them."""
        lines_of = lru_cache(maxsize=MAX_FILES_OPEN)(self._lines)
        for source_id, name in wanted.items():
            with contextlib.suppress(*UNREADABLE):
                line = lines_of(name)[source_id]
                if content := _CONTENT.search(line):
                    yield source_id, content[1].decode(), None
                else:
                    yield source_id, None, as_json(line)["provenance"].get(LOOKED_AT)

    def _lines(self, name: str) -> dict[str, bytes]:
        """The unparsed records of a file, by source."""
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


def _keep_preferred(entries: dict[str, Entry], source_id: str, entry: Entry) -> None:
    """Stores the entry unless there is one that is preferred to it: the names of the files are not compared."""
    if source_id not in entries or entry[1:] >= entries[source_id][1:]:
        entries[source_id] = entry
